"""Cases of 8^3 voxels with a bright lesion, written to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.imaging.nifti import write_volume

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))


def write_case(root: Path, name: str, subject: str, split: str = "train", seed: int = 0) -> Case:
    """A box and some single voxels in noise; another seed gives another mask."""
    rng = np.random.default_rng(seed)
    label = (rng.random((8, 8, 8)) < 0.05).astype(np.uint8)
    low = rng.integers(1, 4, 3)
    label[tuple(slice(start, start + 3) for start in low)] = 1
    write_volume(root / f"{name}.nii.gz", label * 300.0 + rng.normal(0, 20, label.shape), np.eye(4))
    write_volume(root / f"{name}_seg.nii.gz", label, np.eye(4))
    return Case(name, (f"{name}.nii.gz",), f"{name}_seg.nii.gz", subject, split)
