"""The leak guard: refuses to compare anything that has seen a test subject. It never repairs a leak.

Subjects are identified by name, and scans also by the contents of their files, because a name does not prove what a
file contains. Validation subjects count as seen by the generator, because they may have decided which checkpoint is
used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medaug.cohort.manifest import Manifest
from medaug.cohort.seen import Contents, Seen, image_owners
from medaug.data.cache import content_digests
from medaug.data.contents import case_contents, cohort_digest, refuse_shared
from medaug.errors import UserError
from medaug.screening.screener import Screener
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Card, refuse_changed_scans


def refuse_leaks(
    cohort: Manifest,
    synthetic: Manifest,
    records: Iterable[Mapping[str, Any]],
    seen: Seen,
    checkpoint: str,
) -> None:
    """Check the generator and every synthetic pair against the cohort's splits.

    Args:
        cohort: real scans with splits.
        synthetic: the pairs that segmenters will be trained on.
        records: provenance of the pairs.
        seen: what the generator saw, from its checkpoint.
        checkpoint: SHA-256 of the generator's checkpoint.

    Raises:
        UserError: a pair has no provenance or comes from another checkpoint; the generator or the mask generator saw a
            test subject; or a pair was made from a validation or test subject.
    """
    if known := seen.test_subjects(cohort):
        raise UserError(f"leak: the generator saw test subject(s) {named(known)}", "train it again on this split")
    if leaked := seen.in_split("train") & cohort.subjects("val"):
        raise UserError(f"leak: the generator trained on validation subject(s) {named(leaked)}", "train it again")
    hosts = {case.name: case.subject for case in cohort.cases}
    by_name = {record["name"]: record for record in records}
    allowed = cohort.subjects("train")
    for case in synthetic.cases:
        record = by_name.get(case.name)
        if record is None or not record["subjects"]:
            raise UserError(f"leak guard: {case.name} has no provenance", "generate the pairs again")
        if record["checkpoint"] != checkpoint:
            raise UserError(
                f"leak guard: {case.name} was made by another checkpoint. Either the model was trained again since "
                "then, or the pairs were made with another value of checkpoint",
                "generate the pairs again (overwrite=true)",
            )
        if tested := set(record.get("mask_validation_subjects", ())) & cohort.subjects("test"):
            raise UserError(
                f"leak: the mask generator of {case.name} saw test subject(s) {named(tested)}", "train it again"
            )
        host = str(record.get("host"))
        if hosts.get(host, record.get("host_subject")) != record.get("host_subject"):
            raise UserError(
                f"leak guard: the record of {case.name} says that its host {host} is not of subject {hosts[host]}",
                "generate again",
            )
        if outside := set(record["subjects"]) - allowed:
            raise UserError(
                f"leak: {case.name} was made from {named(outside)}, not a training subject", "generate again"
            )


def refuse_content(cohort: Manifest, contents: Contents, pairs: Pairs, digests: Mapping[Path, str], card: Card) -> None:
    """Check the contents of the files of the cohort, of the pairs, and of the scans that the generator was trained on.

    Args:
        cohort: real scans with splits.
        contents: digests of the contents of all cases in the cohort.
        pairs: the pairs that segmenters will be trained on.
        digests: current SHA-256 of the files of the pairs.
        card: card of the generator.

    Raises:
        UserError: one scan is in two splits; a scan changed since the training; the generator saw a test scan under
            another name; or a pair is a validation or test scan, or is not the one that was generated.
    """
    refuse_shared(cohort, contents)
    refuse_changed_scans(card, contents)
    card.seen.refuse_test_scans("the generator", cohort, contents)
    held_out = image_owners((*cohort.split("val"), *cohort.split("test")), contents)
    for case in pairs.manifest.cases:
        for path in pairs.manifest.image_paths(case):
            if (owner := held_out.get(digests[path])) is not None:
                raise UserError(f"leak: {case.name} is the scan of {owner.name} ({owner.split})", "generate again")
    pairs.refuse_changed(digests)


def refuse_leaky_screening(cohort: Manifest, screener: Screener) -> None:
    """Check what the screening of the pairs was fitted on against the cohort's splits.

    Raises:
        UserError: the screening segmenter was trained on subjects outside the training split, or a rule saw a test
            subject.
    """
    if known := {*screener.seen.test_subjects(cohort), *screener.seen.trained_outside(cohort.subjects("train"))}:
        raise UserError(
            f"leak: the screening of the pairs saw {named(known)}, which it must not see",
            "generate the pairs again",
        )


def guarded_cohort(train: Path, pairs: Pairs, card: Card, checkpoint: str) -> tuple[Manifest, str]:
    """Read the cohort of a training and check it against the pairs and the generator; returns it with its digest.

    Args:
        train: folder of the training; digests of files are stored in the cache beside it.
        pairs: pairs made by the generator of that training.
        card: card of the generator.
        checkpoint: SHA-256 of the generator's checkpoint.

    Raises:
        UserError: as for `refuse_leaks` and `refuse_content`.
    """
    cohort, cache = Manifest.load(train / "manifest.json"), train.parent / "cache"
    refuse_leaks(cohort, pairs.manifest, pairs.records, card.seen, checkpoint)
    contents = case_contents(cohort, cohort.cases, cache)
    if pairs.screener is not None:
        refuse_leaky_screening(cohort, pairs.screener)
        pairs.screener.seen.refuse_test_scans("the screening of the pairs", cohort, contents)
    files = [path for case in pairs.manifest.cases for path in pairs.manifest.files(case)]
    refuse_content(cohort, contents, pairs, content_digests(files, cache), card)
    return cohort, cohort_digest(cohort, contents)


def named(subjects: Iterable[str]) -> str:
    """The first three names in order, and how many more there are."""
    names = sorted(subjects)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
