"""Folds for cross-validation, and studies with fewer labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from medaug.cohort.manifest import Case
from medaug.cohort.splits import Strata, ranked_strata, subject_rank
from medaug.errors import UserError


def kfold(cases: Iterable[Case], k: int, seed: int, strata: Strata | None = None) -> dict[str, int]:
    """Divide the subjects of the splits "train" and "val" into folds; test subjects are in no fold.

    Subjects are assigned to the folds in turn, one stratum after another, so that fold sizes differ by at most one
    subject, both overall and within each stratum (see `medaug.cohort.splits.ranked_strata`).

    Returns:
        Subject -> fold, 0..k-1.

    Raises:
        UserError: fewer subjects than folds.
    """
    groups = ranked_strata([case for case in cases if case.split != "test"], seed, strata)
    subjects = [subject for group in groups for subject in group]
    if len(subjects) < k:
        raise UserError(f"folds={k}: only {len(subjects)} subjects are outside the test split", "choose fewer folds")
    return {subject: index % k for index, subject in enumerate(subjects)}


def hold_out_fold(
    cases: Iterable[Case], k: int, fold: int, seed: int, strata: Strata | None = None
) -> tuple[Case, ...]:
    """Give the cases of one fold of `kfold` the split "val" and those of the other folds "train"; "test" stays.

    Returns:
        The cases in the order given.

    Raises:
        UserError: as for `kfold`, or there is no such fold.
    """
    cases = tuple(cases)
    folds = kfold(cases, k, seed, strata)
    if not 0 <= fold < k:
        raise UserError(f"fold={fold}: there are folds 0 to {k - 1} (folds={k})", "choose one of them")
    return tuple(
        case if case.split == "test" else replace(case, split="val" if folds[case.subject] == fold else "train")
        for case in cases
    )


def splits_final(cases: Iterable[Case], k: int, seed: int, strata: Strata | None = None) -> list[dict[str, list[str]]]:
    """Return the folds of `kfold` as nnU-Net's splits_final.json lists them: the "train" and "val" cases of each fold.

    Only labelled cases are listed, because nnU-Net does not support unlabelled ones.

    Raises:
        UserError: as for `kfold`, or there are fewer labelled subjects than folds.
    """
    cases = tuple(cases)
    folds = kfold(cases, k, seed, strata)
    fold_of = {case.name: folds[case.subject] for case in cases if case.subject in folds and case.label is not None}
    if (used := len(set(fold_of.values()))) < k:
        raise UserError(
            f"folds={k}: the labelled subjects outside the test split fill only {used}", "choose fewer folds"
        )
    return [
        {
            "train": sorted(name for name, fold in fold_of.items() if fold != val),
            "val": sorted(name for name, fold in fold_of.items() if fold == val),
        }
        for val in range(k)
    ]


def hide_labels(cases: Iterable[Case], num: int, seed: int) -> tuple[Case, ...]:
    """Keep the labels of `num` training subjects; the cases of all other training subjects become unlabelled.

    Subjects are ranked by a hash of (seed, subject), so a smaller `num` keeps a subset of what a larger one keeps.

    Returns:
        The cases in the order given.

    Raises:
        UserError: fewer labelled training subjects than `num`, or `num` below 1.
    """
    cases = tuple(cases)
    labelled = {case.subject for case in cases if case.split == "train" and case.label is not None}
    if not labelled:
        raise UserError(f"labelled={num}: no training subject has a label", "add labels, or leave labelled out")
    if not 1 <= num <= len(labelled):
        raise UserError(
            f"labelled={num}: {len(labelled)} training subjects have labels", f"choose 1 to {len(labelled)}"
        )
    kept = sorted(labelled, key=lambda subject: subject_rank(f"labelled {seed}", subject))[:num]
    return tuple(case if case.split != "train" or case.subject in kept else replace(case, label=None) for case in cases)
