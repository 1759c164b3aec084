"""The trivial baseline: the Dice that a segmenter must exceed to have learned anything.

Organs lie in similar places, so a mask that is the same for every scan agrees with every label to some degree. The
trivial baseline is the best such mask. It holds the voxels that most often belong to a structure, and as many of them
as give the best mean Dice. The best mask may be empty for a rare structure, and the whole volume if positions say
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.evaluation.scores import MEAN_FOREGROUND


def trivial_dice(labels: Sequence[NDArray[np.uint8]], subjects: Sequence[str], schema: LabelSchema) -> dict[str, float]:
    """Mean Dice of the trivial baseline on subjects whose labels it has not seen.

    For every subject, candidate masks are made from the other subjects: candidate k contains the voxels that belong to
    the structure in at least k of them. k runs from 0 (the whole volume) to their number plus 1 (an empty mask); the k
    with the best mean Dice over all labels is used.

    Args:
        labels: class indices or IGNORE of the training scans on one grid, (X, Y, Z) each.
        subjects: subject of each label; the masks for a subject do not use its own scans.
        schema: label schema.

    Returns:
        The Dice of each structure, 0..1, and the mean over structures as `MEAN_FOREGROUND`.

    Raises:
        ValueError: there are no labels, or the numbers of labels and subjects differ.
    """
    if not labels or len(labels) != len(subjects):
        raise ValueError(f"{len(labels)} labels and {len(subjects)} subjects; give one subject per label")
    members: dict[str, list[int]] = {}
    for index, subject in enumerate(subjects):
        members.setdefault(subject, []).append(index)

    def masks_of(index: int) -> dict[str, NDArray[np.bool_]]:
        return schema.structure_masks(np.asarray(labels[index]))

    counts = {name: np.zeros(labels[0].shape, np.int32) for name in schema.structures()}
    for indices in members.values():
        for name, mask in _union(masks_of(i) for i in indices).items():
            counts[name] += mask
    sums = {name: np.zeros(len(members) + 1) for name in counts}
    for indices in members.values():
        own = _union(masks_of(i) for i in indices)
        others = {name: counts[name] - own[name] for name in counts}
        sizes = {name: _at_least(others[name], len(members)) for name in counts}
        for index in indices:
            for name, mask in masks_of(index).items():
                total = sizes[name] + int(mask.sum())
                hits = _at_least(others[name][mask], len(members))
                sums[name] += np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)
    dice = {name: float(total.max() / len(labels)) for name, total in sums.items()}
    return {MEAN_FOREGROUND: float(np.mean(list(dice.values()))), **dice}


def _union(masks: Iterable[dict[str, NDArray[np.bool_]]]) -> dict[str, NDArray[np.bool_]]:
    """The union of the masks of each structure."""
    first, *rest = masks
    return {name: np.logical_or.reduce([mask, *(other[name] for other in rest)]) for name, mask in first.items()}


def _at_least(counts: NDArray[np.int32], most: int) -> NDArray[np.int64]:
    """For each k from 0 to `most`, how many of the counts are at least k."""
    return np.bincount(counts.ravel(), minlength=most + 1)[::-1].cumsum()[::-1]
