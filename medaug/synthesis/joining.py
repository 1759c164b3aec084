"""Joins pairs and the real scans of their generator's cohort in one manifest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import read_checkpoint


def beside_cohort(pairs: Pairs, train: Path) -> tuple[Manifest, frozenset[str]]:
    """Join the cohort that a generator was trained on and its pairs, with the splits of the training.

    Args:
        pairs: the pairs, all in the training split.
        train: folder of the training, with its manifest and checkpoints.

    Returns:
        The manifest, whose root is the folder that holds all files; and the subjects that the generator was trained on,
        including those of the trainings that it started from.

    Raises:
        UserError: the checkpoint that made the pairs no longer exists, or two cases have the same name.
    """
    wanted = {record["checkpoint"] for record in pairs.records}
    checkpoints = [path for path in (train / "last.ckpt", train / "best.ckpt") if path.exists()]
    made_by = next((path for path in checkpoints if wanted == {file_sha256(path)}), None)
    if made_by is None:
        raise UserError(
            "holds no checkpoint that made the pairs, so it is not known which subjects their generator saw",
            "generate the pairs again (overwrite=true)",
            path=train,
        )
    cohort = Manifest.load(train / "manifest.json")
    root = os.path.commonpath([cohort.root, pairs.manifest.root])
    cases = (*_moved(cohort, root), *_moved(pairs.manifest, root))
    joined = replace(cohort, cases=cases, root=root)
    joined.validate(str(train / "manifest.json"))
    return joined, read_checkpoint(made_by)[0].seen.in_split("train")


def _moved(manifest: Manifest, root: str) -> list[Case]:
    """The cases of a manifest, with paths relative to a folder above its root."""
    place = Path(manifest.root).relative_to(root)
    return [
        replace(
            case,
            images=tuple((place / image).as_posix() for image in case.images),
            label=None if case.label is None else (place / case.label).as_posix(),
            confidence=None if case.confidence is None else (place / case.confidence).as_posix(),
        )
        for case in manifest.cases
    ]
