"""Cross-validation: every subject outside the test split is scored once, by segmenters trained without it."""

from __future__ import annotations

from dataclasses import replace

from medaug.cohort.folds import kfold
from medaug.cohort.manifest import Manifest


def fold_cohort(cohort: Manifest, num: int, fold: int, seed: int) -> Manifest:
    """The cohort of one fold: its subjects form the test split, those of the next fold the validation split.

    All others are training subjects.

    The folds are those of `medaug.cohort.folds.kfold`, and therefore of nnU-Net's splits_final.json that `ingest`
    writes with the same seed. Subjects of the cohort's own test split are left out.

    Args:
        cohort: real scans with splits.
        num: number of folds, at least 3.
        fold: 0..num-1.
        seed: seed of the folds.

    Raises:
        UserError: fewer subjects than folds.
    """
    fold_of = kfold(cohort.cases, num, seed)
    role = {fold: "test", (fold + 1) % num: "val"}
    cases = [
        replace(case, split=role.get(fold_of[case.subject], "train"))
        for case in cohort.cases
        if case.subject in fold_of
    ]
    return replace(cohort, cases=tuple(cases))
