"""No test subject may have been seen by anything that is compared. Refuses, never repairs.

A generator sees its validation subjects: they may have chosen its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medaug.cohort.manifest import Manifest
from medaug.errors import UserError


def refuse_leaks(
    cohort: Manifest,
    synthetic: Manifest,
    records: Iterable[Mapping[str, Any]],
    generator_subjects: Mapping[str, Iterable[str]],
    checkpoint: str,
) -> None:
    """Check the generator and every synthetic pair against the cohort's splits.

    Args:
        cohort: real scans with splits.
        synthetic: the pairs to be trained on.
        records: their provenance.
        generator_subjects: per split, whom the generator's training saw, from its checkpoint.
        checkpoint: SHA-256 of that checkpoint.

    Raises:
        UserError: a pair without provenance or of another checkpoint; a test subject that the generator, or that of the
            masks, saw; a pair made from a validation or test subject.
    """
    saw = {subject for subjects in generator_subjects.values() for subject in subjects}
    if leaked := saw & cohort.subjects("test"):
        raise UserError(f"leak: the generator saw test subject(s) {_some(leaked)}; train it again on this split")
    if leaked := set(generator_subjects["train"]) & cohort.subjects("val"):
        raise UserError(f"leak: the generator trained on validation subject(s) {_some(leaked)}; train it again")
    by_name = {record["name"]: record for record in records}
    allowed = cohort.subjects("train")
    for case in synthetic.cases:
        record = by_name.get(case.name)
        if record is None or not record["subjects"]:
            raise UserError(f"leak guard: {case.name} has no provenance; generate the pairs again")
        if record["checkpoint"] != checkpoint:
            raise UserError(f"leak guard: {case.name} was made by another checkpoint; generate the pairs again")
        if leaked := set(record.get("mask_validation_subjects", ())) & cohort.subjects("test"):
            raise UserError(
                f"leak: the mask generator of {case.name} saw test subject(s) {_some(leaked)}; train it again"
            )
        if outside := set(record["subjects"]) - allowed:
            raise UserError(f"leak: {case.name} was made from {_some(outside)}, not a training subject; generate again")


def _some(subjects: Iterable[str]) -> str:
    names = sorted(subjects)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
