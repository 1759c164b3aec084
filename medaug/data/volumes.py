"""Splits in which test subjects differ from training subjects in the volume of what is labelled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import foreground
from medaug.errors import UserError
from medaug.imaging.cases import read_indices
from medaug.imaging.reading import read_header
from medaug.progress import track


def subject_volumes(manifest: Manifest) -> dict[str, float]:
    """The volume of every subject's foreground in mm^3, averaged over the subject's labelled scans.

    Raises:
        UserError: as for `read_indices`.
    """
    volumes = defaultdict(list)
    labelled = [case for case in manifest.cases if case.label is not None]
    for case in track(labelled, "measuring labels"):
        grid = read_header(manifest.image_paths(case)[0])
        voxels = int(foreground(np.asarray(read_indices(manifest, case, grid))).sum())
        volumes[case.subject].append(voxels * abs(float(np.linalg.det(grid.affine[:3, :3]))))
    return {subject: float(np.mean(found)) for subject, found in volumes.items()}


def split_by_volume(
    cases: Iterable[Case], volumes: Mapping[str, float], train: Sequence[float], test: Sequence[float]
) -> tuple[Case, ...]:
    """Move subjects to the test split, or leave them out, by the volume of their foreground.

    Validation subjects never become test subjects, because settings may have been chosen on them. Subjects in neither
    range are left out, and so are those without a volume.

    Args:
        cases: cases with splits.
        volumes: subject -> volume, in any unit.
        train: two ascending quantiles (0..1) of the subjects' volumes; training and validation subjects lie between
            them.
        test: the same for test subjects; the two ranges may have one end in common.

    Returns:
        The remaining cases in the order given.

    Raises:
        UserError: the ranges overlap, or no subject is left for training or testing.
    """
    if max(train[0], test[0]) < min(train[1], test[1]):
        raise UserError(
            f"data.train_volumes={list(train)} and data.test_volumes={list(test)} overlap",
            "choose ranges that have at most one end in common",
        )
    known = list(volumes.values()) or [0.0]
    (train_low, train_high), (test_low, test_high) = np.quantile(known, train), np.quantile(known, test)
    found = []
    for case in cases:
        volume = volumes.get(case.subject)
        if volume is None:
            continue
        if case.split != "val" and test_low <= volume <= test_high:
            found.append(replace(case, split="test"))
        elif train_low <= volume <= train_high:
            found.append(replace(case, split="val" if case.split == "val" else "train"))
    for split, key in (("train", "train_volumes"), ("test", "test_volumes")):
        if not any(case.split == split for case in found):
            raise UserError(f"data.{key}: no {split} subject has such a volume", "choose a wider range")
    return tuple(found)
