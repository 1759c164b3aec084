"""External pairs: synthetic pairs made not by the experiment but by another generator, another run or a person.

Their generator cannot be inspected, so the leak guard relies on a declaration of the subjects that the generator saw,
in training or to select a model. For the pairs of another run of medaug, its checkpoint is the declaration. Without a
declaration, pairs are accepted, and the report begins with the sentence that a leak cannot be excluded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medaug.cohort.manifest import Manifest
from medaug.cohort.seen import Contents, Seen, image_owners
from medaug.comparison.guard import named, refuse_leaks, refuse_leaky_screening
from medaug.data.cache import content_digests
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.inputs import read_json, read_text
from medaug.ownership import finished
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import read_checkpoint

KEY = "seen"
"""Key of a manifest that declares which subjects the generator of its pairs saw: a list, or lists by split."""
SOURCE = "external"
"""`mask_source` in the records of pairs whose masks may come from any subject that they name."""
_DECLARE = 'declare them as "seen": ["subject", ...] in the manifest, or in the file of benchmark.pairs_seen'


@dataclass(frozen=True)
class External:
    """Pairs that the experiment did not make.

    Attributes:
        name: name of their manifest.
        pairs: the pairs.
        digests: SHA-256 of their files.
        seen: subjects and files that their generator saw; None: they were not declared.
        checkpoint: SHA-256 of the checkpoint that made them, if another run of medaug did.
    """

    name: str
    pairs: Pairs
    digests: Mapping[Path, str]
    seen: Seen | None
    checkpoint: str | None = None

    @property
    def declared(self) -> str:
        """Digest of what the generator saw, for the identity of a run; "nothing" if it was not declared."""
        if self.seen is None:
            return "nothing"
        subjects = {split: sorted(names) for split, names in self.seen.subjects.items()}
        return hashlib.sha256(json.dumps(subjects, sort_keys=True).encode()).hexdigest()


def read_external(path: Path, declaration: Path | None, cache: Path) -> External:
    """Read a synthetic set.

    Args:
        path: manifest of the set.
        declaration: text file with the subjects that its generator saw, one per line; None: the manifest declares them.
        cache: folder in which digests of files are stored.

    Raises:
        UserError: a file is missing or damaged, or was changed after another run of medaug made it; or a pair has no
            label.
    """
    manifest = Manifest.load(path)
    if unlabelled := [case.name for case in manifest.cases if case.label is None]:
        raise UserError(f"{named(unlabelled)} has no label", "give every pair its mask, or leave it out", path=path)
    seen, digests = _declared(path, declaration), content_digests(_files(manifest), cache)
    if "digest" in (finished(path.parent) or {}):
        pairs = Pairs.load(path.parent)
        pairs.refuse_changed(digests)
        checkpoint, trained = _checkpoint(path.parent, pairs)
        known = [one for one in (seen, trained) if one is not None]
        return External(manifest.name, pairs, digests, known[0] | known[-1] if known else None, checkpoint)
    records = tuple(
        {
            "name": case.name,
            "mask_source": SOURCE,
            "subjects": [case.subject],
            "contents": [digests[file] for file in manifest.files(case)],
        }
        for case in manifest.cases
    )
    return External(manifest.name, Pairs(manifest, records), digests, seen)


def refuse_external_leaks(cohort: Manifest, contents: Contents, external: External) -> None:
    """Check a synthetic set against the cohort's splits.

    Args:
        cohort: real scans with splits.
        contents: digests of the contents of all cases in the cohort.
        external: the synthetic set.

    Raises:
        UserError: the set's classes or modalities are not those of the cohort; its generator saw a test subject, or was
            trained on a validation subject; or a pair is a validation or test scan, or names such a subject.
    """
    manifest, seen = external.pairs.manifest, external.seen or Seen({})
    refuse_other_kind(cohort, manifest)
    if external.checkpoint is not None and external.seen is not None:
        refuse_leaks(cohort, manifest, external.pairs.records, seen, external.checkpoint)
        if external.pairs.screener is not None:
            refuse_leaky_screening(cohort, external.pairs.screener)
    if known := seen.test_subjects(cohort):
        raise UserError(f"leak: the generator of {external.name} saw test subject(s) {named(known)}", "leave it out")
    if leaked := seen.in_split("train") & cohort.subjects("val"):
        raise UserError(
            f"leak: the generator of {external.name} trained on validation subject(s) {named(leaked)}",
            'leave it out; if it only selected a model on them, declare {"train": [...], "val": [...]}',
        )
    seen.refuse_test_scans(f"the generator of {external.name}", cohort, contents)
    scans = [case for case in cohort.cases if case.split != "train"]
    held_out, owners = {case.subject: case.split for case in scans}, image_owners(scans, contents)
    made_from = {record["name"]: record["subjects"] for record in external.pairs.records}
    for case in manifest.cases:
        for subject in {case.subject, *made_from.get(case.name, ())} & held_out.keys():
            what = f"leak: {case.name} of {external.name} is of {held_out[subject]} subject {subject}"
            raise UserError(what, "leave the pair out")
        for path in manifest.image_paths(case):
            if (other := owners.get(external.digests[path])) is not None:
                what = f"leak: {case.name} of {external.name} is the scan of {other.name} ({other.split})"
                raise UserError(what, "leave the pair out")


def refuse_held_out_masks(scored: Sequence[ModelCase], synthetic: Sequence[ModelCase]) -> None:
    """Refuse pairs whose mask equals that of a scan that will be scored, voxel by voxel in model space.

    Args:
        scored: the scans, with labels.
        synthetic: pairs that the experiment did not make. Masks without foreground are not compared.

    Raises:
        UserError: a mask is equal; names the pair and the scan.
    """
    owners = {np.asarray(case.label).tobytes(): case.case for case in scored if np.any(case.label)}
    for pair in synthetic:
        if (owner := owners.get(np.asarray(pair.label).tobytes())) is not None:
            what = f"leak: {pair.case.name} has the mask of {owner.name} ({owner.split})"
            raise UserError(what, "leave the pair out")


def _declared(path: Path, declaration: Path | None) -> Seen | None:
    """The subjects that the generator saw, as declared; None if nothing is declared."""
    found = []
    stored = read_json(path).get(KEY)
    if stored is not None:
        found.append(Seen(_by_split(stored, path)))
    if declaration is not None:
        lines = [line.strip() for line in read_text(declaration).splitlines()]
        found.append(Seen({"train": [line for line in lines if line and not line.startswith("#")]}))
    return None if not found else found[0] | found[-1]


def _files(manifest: Manifest) -> list[Path]:
    return [path for case in manifest.cases for path in manifest.files(case)]


def _by_split(stored: Any, path: Path) -> Mapping[str, list[str]]:
    """Subjects by split; the subjects of a plain list count as trained on.

    Raises:
        UserError: it is neither a list of texts nor a mapping from train and val to such lists.
    """
    by_split = stored if isinstance(stored, dict) else {"train": stored}
    for split, names in by_split.items():
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if split not in ("train", "val") or not texts:
            raise UserError(f"{KEY} is {stored!r:.60}", _DECLARE, path=path)
    return by_split


def _checkpoint(folder: Path, pairs: Pairs) -> tuple[str | None, Seen | None]:
    """Digest of the checkpoint that made the pairs of another run, and what it saw; None if it no longer exists."""
    makers = {str(record["checkpoint"]) for record in pairs.records}
    for path in (folder.parent / "train" / name for name in ("best.ckpt", "last.ckpt")):
        if path.exists() and makers == {digest := file_sha256(path)}:
            return digest, read_checkpoint(path)[0].seen
    return None, None


def refuse_other_kind(cohort: Manifest, manifest: Manifest) -> None:
    """Refuse a manifest whose classes or modalities are not those of the cohort.

    Raises:
        UserError: names or order differ.
    """
    ours, theirs = ([name for _, name in one.schema.labels] for one in (cohort, manifest))
    for noun, own, other in (("classes", ours, theirs), ("modalities", cohort.modalities, manifest.modalities)):
        if list(own) != list(other):
            raise UserError(
                f"{manifest.name} has the {noun} {', '.join(other)}, the cohort {', '.join(own)}",
                "give it those of the cohort, in the same order",
                path=manifest.root,
            )
