"""What can be had without looking at a scan: the Dice below which a segmenter has learned nothing.

Organs lie in like places, so a mask that never changes agrees with every label to some degree. The trivial baseline is
such a mask: the places where a structure lies most often, as many of them as agree best with the labels. That may be
none, where a structure is rare, or all, where its place says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.evaluation.scores import MEAN_FOREGROUND


def trivial_dice(labels: Sequence[NDArray[np.uint8]], subjects: Sequence[str], schema: LabelSchema) -> dict[str, float]:
    """Mean Dice that the trivial baseline reaches on subjects whose labels it does not know.

    For every subject, candidate masks are made from the other subjects: candidate k holds the places that a structure
    has in at least k of them, from 0 (everywhere) to their number + 1 (nowhere). The candidate with the best mean over
    all labels counts.

    Args:
        labels: class indices or IGNORE of the training scans on one grid, (X, Y, Z) each.
        subjects: of the labels; a subject's scans say nothing about each other.
        schema: of the labels.

    Returns:
        Dice in 0..1 by structure, and their mean as `MEAN_FOREGROUND`.

    Raises:
        ValueError: no labels, or not one subject per label.
    """
    if not labels or len(labels) != len(subjects):
        raise ValueError(f"{len(labels)} labels and {len(subjects)} subjects: one subject per label is needed")
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
    """For each structure, where any of the masks has it."""
    first, *rest = masks
    return {name: np.logical_or.reduce([mask, *(other[name] for other in rest)]) for name, mask in first.items()}


def _at_least(counts: NDArray[np.int32], most: int) -> NDArray[np.int64]:
    """How many of the counts are at least 0, 1, ..., `most`."""
    return np.bincount(counts.ravel(), minlength=most + 1)[::-1].cumsum()[::-1]
