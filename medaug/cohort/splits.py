"""Subjects, and splits by subject."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from medaug.cohort.manifest import Case
from medaug.errors import UserError

Strata = Mapping[str, frozenset[str] | None]
"""Case name -> the classes in its label, or None if it is unlabelled."""


def subject_of(case_name: str, pattern: str | None, consecutive: int = 1) -> str:
    """Return the subject of a case.

    Args:
        case_name: name of the case.
        pattern: regular expression searched in `case_name`; its group 1 is the subject. None: the case name itself.
        consecutive: this many consecutive case numbers (counted from 1) belong to one person; group 1 must then be
            a number. With 2, numbers 2k-1 and 2k give "<text before the number>subject_<k>".

    Raises:
        UserError: the pattern is not valid, has no group or does not match; or `consecutive` is above 1 and group 1 is
            not a number from 1 up.
    """
    if pattern is None:
        return case_name
    try:
        found = re.search(pattern, case_name)
    except re.error as error:
        raise UserError(f"subject pattern {pattern}: not a regular expression ({error})", "correct it") from error
    if found is None or not found.re.groups or found.group(1) is None:
        raise UserError(f"subject pattern {pattern}: finds no group 1 in case {case_name}", "correct the pattern")
    if consecutive == 1:
        return found.group(1)
    if not found.group(1).isdecimal() or int(found.group(1)) < 1:
        raise UserError(
            f"subject pattern {pattern}: group 1 of case {case_name} is not a number from 1 up", "correct it"
        )
    number = (int(found.group(1)) + consecutive - 1) // consecutive
    return f"{case_name[: found.start(1)]}subject_{number:03d}"


def assign_splits(
    cases: Iterable[Case], val_fraction: float, test_fraction: float, seed: int, strata: Strata | None = None
) -> tuple[Case, ...]:
    """Assign each case a split ("train", "val" or "test"); all cases of a subject get the same split.

    Fractions count subjects. Each split whose fraction is above 0 gets at least one subject, and so does "train".
    Within a stratum (see `ranked_strata`) subjects are ranked by a hash of (seed, subject). Each stratum's
    contribution to the test split, and then to the validation split, is within one subject of its proportional share.

    Args:
        cases: cases of one cohort; the splits do not depend on their order.
        val_fraction: share of all subjects for validation.
        test_fraction: share of all subjects for testing.
        seed: seed of the hash.
        strata: classes of each case; None: only labelled and unlabelled subjects are distinguished.

    Returns:
        The cases in the order given.

    Raises:
        UserError: the fractions leave nothing for training, or there are too few subjects.
    """
    cases = tuple(cases)
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):  # also true for NaN
        raise UserError(
            f"val_fraction={val_fraction:g}, test_fraction={test_fraction:g}: they must be 0 or more"
            " and add up to less than 1",
            "choose smaller ones",
        )
    groups = ranked_strata(cases, seed, strata)
    num_subjects = sum(map(len, groups))
    num_test = _count(test_fraction, num_subjects)
    num_val = _count(val_fraction, num_subjects)
    if num_test + num_val >= num_subjects:
        raise UserError(
            f"splits: {num_subjects} subjects are too few for {num_val} validation (val_fraction={val_fraction:g}) and"
            f" {num_test} test subjects (test_fraction={test_fraction:g}) besides training",
            "add subjects, or set val_fraction or test_fraction to 0",
        )
    split: dict[str, str] = {}
    tests = _shares(num_test, [len(group) for group in groups])
    vals = _shares(num_val, [len(group) - test for group, test in zip(groups, tests, strict=True)])
    for group, test, val in zip(groups, tests, vals, strict=True):
        split |= dict.fromkeys(group, "train")
        split |= dict.fromkeys(group[:test], "test")
        split |= dict.fromkeys(group[test : test + val], "val")
    return tuple(replace(case, split=split[case.subject]) for case in cases)


def ranked_strata(cases: Iterable[Case], seed: int, strata: Strata | None = None) -> list[list[str]]:
    """Group subjects by the classes that occur in their labels; subjects without a label form one group.

    Args:
        cases: the cases of all subjects.
        seed: seed of the hash that ranks the subjects.
        strata: classes of each case; None: all labels count as equal.

    Returns:
        The groups, ordered by the rank of their first subject; subjects within a group are ordered by rank.
    """
    classes: dict[str, frozenset[str] | None] = {}
    for case in cases:
        own = (frozenset() if case.label is not None else None) if strata is None else strata.get(case.name)
        known = classes.get(case.subject)
        classes[case.subject] = own if known is None else known | (own or frozenset())
    groups: dict[frozenset[str] | None, list[str]] = {}
    for subject in sorted(classes, key=lambda subject: subject_rank(seed, subject)):
        groups.setdefault(classes[subject], []).append(subject)
    return list(groups.values())


def subject_rank(seed: int | str, subject: str) -> bytes:
    """Return a pseudo-random sort key that depends only on the arguments; it must never change, or splits would."""
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()


def _count(fraction: float, num_subjects: int) -> int:
    return max(1, round(fraction * num_subjects)) if fraction > 0 else 0


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes` by the largest-remainder method; of equal remainders the first wins."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(total * sizes[i] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares
