"""No test subject may have been seen by anything that is compared. Refuses, never repairs.

Subjects are told by their names, and scans by their contents as well: a name says nothing of what its file holds.
A generator sees its validation subjects: they may have chosen its checkpoint.
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
        synthetic: the pairs to be trained on.
        records: their provenance.
        seen: by the generator, from its checkpoint.
        checkpoint: SHA-256 of that checkpoint.

    Raises:
        UserError: a pair without provenance or of another checkpoint; a test subject that the generator, or that of the
            masks, saw; a pair made from a validation or test subject.
    """
    if known := seen.test_subjects(cohort):
        raise UserError(f"leak: the generator saw test subject(s) {_some(known)}", "train it again on this split")
    if leaked := seen.in_split("train") & cohort.subjects("val"):
        raise UserError(f"leak: the generator trained on validation subject(s) {_some(leaked)}", "train it again")
    hosts = {case.name: case.subject for case in cohort.cases}
    by_name = {record["name"]: record for record in records}
    allowed = cohort.subjects("train")
    for case in synthetic.cases:
        record = by_name.get(case.name)
        if record is None or not record["subjects"]:
            raise UserError(f"leak guard: {case.name} has no provenance", "generate the pairs again")
        if record["checkpoint"] != checkpoint:
            raise UserError(
                f"leak guard: {case.name} was made by another checkpoint: the model was trained again since, or the "
                "pairs were made with another checkpoint=",
                "generate the pairs again (overwrite=true)",
            )
        if tested := set(record.get("mask_validation_subjects", ())) & cohort.subjects("test"):
            raise UserError(
                f"leak: the mask generator of {case.name} saw test subject(s) {_some(tested)}", "train it again"
            )
        host = str(record.get("host"))
        if hosts.get(host, record.get("host_subject")) != record.get("host_subject"):
            raise UserError(
                f"leak guard: {case.name} names another subject than {hosts[host]} for its host {host}",
                "generate again",
            )
        if outside := set(record["subjects"]) - allowed:
            raise UserError(
                f"leak: {case.name} was made from {_some(outside)}, not a training subject", "generate again"
            )


def refuse_content(cohort: Manifest, contents: Contents, pairs: Pairs, digests: Mapping[Path, str], card: Card) -> None:
    """Check what the files hold: of the cohort, of the pairs, and of what the generator's training read.

    Args:
        cohort: real scans with splits.
        contents: of all of its cases.
        pairs: to be trained on.
        digests: SHA-256 of their files as they are now.
        card: of the generator.

    Raises:
        UserError: one scan in two splits; a scan that changed since the training; a test scan that the generator saw
            under another name; a pair that is a validation or test scan, or not the one that was generated.
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


def guarded_cohort(train: Path, pairs: Pairs, card: Card, checkpoint: str) -> tuple[Manifest, str]:
    """The cohort of a training and its digest, once names and contents have been checked against pairs and generator.

    Args:
        train: folder of the training; what was hashed is remembered in the cache beside it.
        pairs: made by its generator.
        card: of the generator.
        checkpoint: its SHA-256.

    Raises:
        UserError: as `refuse_leaks` and `refuse_content`.
    """
    cohort, cache = Manifest.load(train / "manifest.json"), train.parent / "cache"
    refuse_leaks(cohort, pairs.manifest, pairs.records, card.seen, checkpoint)
    contents = case_contents(cohort, cohort.cases, cache)
    files = [path for case in pairs.manifest.cases for path in pairs.manifest.files(case)]
    refuse_content(cohort, contents, pairs, content_digests(files, cache), card)
    return cohort, cohort_digest(cohort, contents)


def _some(subjects: Iterable[str]) -> str:
    names = sorted(subjects)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
