"""Six scans of two modalities, and what tests of their cache ask of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.preprocessing import Preprocessing
from medaug.imaging.nifti import write_volume

SHAPE = (6, 5, 4)
PREPROCESSING = Preprocessing((8, 8, 8), None, (0.0, 100.0))
NAMES = "abcdef"


def write_six_scans(root: Path) -> Manifest:
    """Every second one labelled; the files are old enough to store their digests."""
    rng, cases = np.random.default_rng(0), []
    for i, name in enumerate(NAMES):
        images = tuple(f"{name}_{m}.nii.gz" for m in (0, 1))
        for image in images:
            write_volume(root / image, rng.integers(0, 900, SHAPE).astype(np.int16), np.diag([-1.0, 2.0, 1.5, 1.0]))
        label = f"{name}_seg.nii.gz" if i % 2 == 0 else None
        if label:
            write_volume(root / label, rng.choice([0, 1, 4], SHAPE).astype(np.uint8), np.diag([-1.0, 2.0, 1.5, 1.0]))
        cases.append(Case(name, images, label, f"subject_{name}", "train"))
    for path in root.iterdir():
        os.utime(path, (1e9, 1e9))
    schema = LabelSchema(((0, "background"), (1, "core"), (4, "rim")))
    return Manifest("six", "", ("T1", "T2"), schema, tuple(cases), str(root))


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.json"))


def same(a, b) -> bool:
    return all(
        np.array_equal(one.image, two.image)
        and (one.label is None) == (two.label is None)
        and (one.label is None or np.array_equal(one.label, two.label))
        and one.placement == two.placement
        and np.array_equal(one.affine, two.affine)
        and one.dtype == two.dtype
        for one, two in zip(a, b, strict=True)
    )
