"""Subjects, and splits that no subject crosses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from medaug.cohort.manifest import Case
from medaug.errors import UserError

Strata = Mapping[str, frozenset[str] | None]
"""Case name -> the classes in its label, None where it is unlabelled."""


def subject_of(case_name: str, pattern: str | None, consecutive: int = 1) -> str:
    """Return the person behind a case.

    Args:
        case_name: name of the case.
        pattern: regular expression searched in `case_name`; its group 1 is the subject. None: the case name.
        consecutive: that many consecutive case numbers (counted from 1) are one person; group 1 must then be
            a number. With 2, numbers 2k-1 and 2k give "<text before the number>subject_<k>".

    Raises:
        UserError: the pattern is broken, has no group, does not match, or group 1 is not a number from 1 up.
    """
    if pattern is None:
        return case_name
    try:
        found = re.search(pattern, case_name)
    except re.error as error:
        raise UserError(f"subject pattern {pattern}: not a regular expression ({error})", "mend it") from error
    if found is None or not found.re.groups or found.group(1) is None:
        raise UserError(f"subject pattern {pattern}: finds no group 1 in case {case_name}", "mend the pattern")
    if consecutive == 1:
        return found.group(1)
    if not found.group(1).isdecimal() or int(found.group(1)) < 1:
        raise UserError(f"subject pattern {pattern}: group 1 of case {case_name} is not a number from 1 up", "mend it")
    number = (int(found.group(1)) + consecutive - 1) // consecutive
    return f"{case_name[: found.start(1)]}subject_{number:03d}"


def assign_splits(
    cases: Iterable[Case], val_fraction: float, test_fraction: float, seed: int, strata: Strata | None = None
) -> tuple[Case, ...]:
    """Give each case a split ("train", "val", "test"), all cases of a subject the same one.

    Fractions count subjects; each fraction above 0 gets at least one subject, and so does "train". Within a
    stratum (see `ranked_strata`) subjects are taken by a hash of (seed, subject); what a stratum gives to the test
    split, and of the rest to the validation split, is within one subject of its share.

    Args:
        cases: of one cohort, in any order: the splits do not depend on it, nor on a random generator.
        val_fraction: share of all subjects for validation.
        test_fraction: share of all subjects for testing.
        seed: of the hash.
        strata: None: labelled and unlabelled subjects are the strata.

    Returns:
        The cases in the order given.

    Raises:
        UserError: fractions that leave no training part, or too few subjects.
    """
    cases = tuple(cases)
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):  # not a number, too
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
            f" {num_test} test subjects (test_fraction={test_fraction:g}) beside training",
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
    """Group subjects by the classes that any of their labels holds; subjects without label are a group of their own.

    Args:
        cases: of the subjects.
        seed: of the hash that ranks them.
        strata: None: all labels count as alike.

    Returns:
        Subjects by rank in each group, the groups by the rank of their first subject.
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
    """A number that looks random and depends on nothing but its arguments; manifests rely on it never changing."""
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()


def _count(fraction: float, num_subjects: int) -> int:
    return max(1, round(fraction * num_subjects)) if fraction > 0 else 0


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes` by largest remainder, the earlier of two equal ones first."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(total * sizes[i] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares
