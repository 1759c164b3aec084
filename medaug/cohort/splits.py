"""Subjects, and splits that no subject crosses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

from medaug.cohort.manifest import Case
from medaug.errors import UserError


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
        raise UserError(f"subject pattern {pattern}: not a regular expression ({error}); mend it") from error
    if found is None or not found.re.groups or found.group(1) is None:
        raise UserError(f"subject pattern {pattern}: finds no group 1 in case {case_name}; mend the pattern")
    if consecutive == 1:
        return found.group(1)
    if not found.group(1).isdecimal() or int(found.group(1)) < 1:
        raise UserError(f"subject pattern {pattern}: group 1 of case {case_name} is not a number from 1 up; mend it")
    number = (int(found.group(1)) + consecutive - 1) // consecutive
    return f"{case_name[: found.start(1)]}subject_{number:03d}"


def assign_splits(cases: Iterable[Case], val_fraction: float, test_fraction: float, seed: int) -> tuple[Case, ...]:
    """Give each case a split ("train", "val", "test"), all cases of a subject the same one.

    Subjects are ranked by a hash of (seed, subject): the result depends on neither the order of `cases`
    nor a library's random generator. Fractions count subjects; each fraction above 0 gets at least one
    subject, and so does "train".

    Returns:
        The cases in the order given.

    Raises:
        UserError: fractions that leave no training part, or too few subjects.
    """
    cases = tuple(cases)
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"val_fraction={val_fraction:g}, test_fraction={test_fraction:g}: they must be 0 or more"
            " and add up to less than 1; choose smaller ones"
        )
    subjects = sorted({case.subject for case in cases}, key=lambda subject: _rank(seed, subject))
    num_test = _count(test_fraction, len(subjects))
    num_val = _count(val_fraction, len(subjects))
    if num_test + num_val >= len(subjects):
        raise UserError(
            f"splits: {len(subjects)} subjects are too few for {num_val} validation and {num_test} test"
            " subjects beside training; add subjects or set a fraction to 0"
        )
    split = dict.fromkeys(subjects, "train")
    split.update(dict.fromkeys(subjects[:num_test], "test"))
    split.update(dict.fromkeys(subjects[num_test : num_test + num_val], "val"))
    return tuple(replace(case, split=split[case.subject]) for case in cases)


def _rank(seed: int, subject: str) -> bytes:
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()


def _count(fraction: float, num_subjects: int) -> int:
    return max(1, round(fraction * num_subjects)) if fraction > 0 else 0
