"""The synthetic pairs of a run, with their provenance and checks that they were not changed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medaug.cohort import provenance
from medaug.cohort.manifest import SPACING, Case, Manifest
from medaug.cohort.provenance import PAIR
from medaug.errors import UserError
from medaug.ownership import finished
from medaug.screening.screener import RECORD, Screener
from medaug.training.checkpoint import Card

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """A synthetic dataset.

    Attributes:
        manifest: manifest of the pairs; all are in the training split, each under its host's subject.
        records: provenance of the pairs.
        screener: what the screening rules were fitted on; None if the pairs were not screened.
    """

    manifest: Manifest
    records: tuple[Mapping[str, Any], ...]
    screener: Screener | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of manifest and records, which include the digests of all files."""
        return pairs_digest(self.manifest, self.records)

    @classmethod
    def collect(cls, card: Card, folder: Path, num: int, removed: Collection[str] = (), licence: str = "") -> Pairs:
        """Collect the pairs 0..num-1 that are finished in `folder`.

        Args:
            card: card of the model that generates their images.
            folder: folder of the run.
            num: number of requested pairs.
            removed: names of finished pairs to leave out.
            licence: licence of the cohort, which the pairs inherit.
        """
        made = provenance.read_all(folder, PAIR).values()
        records = tuple(r for r in made if r["index"] < num and r["name"] not in removed)
        notice = "Phantoms, not patients. " if card.phantom else ""
        manifest = Manifest(
            name=f"{card.experiment}_synthetic",
            description=f"{notice}Synthetic image-mask pairs of experiment {card.experiment}; not for clinical use.",
            modalities=card.modalities,
            schema=card.schema,
            cases=tuple(map(_case, records)),
            root=str(folder.resolve()),
            phantom=card.phantom,
            licence=licence,
        )
        return cls(manifest, records)

    def without(self, names: Collection[str]) -> Pairs:
        """The pairs but those with these names.

        Raises:
            UserError: none is left.
        """
        kept = tuple(case for case in self.manifest.cases if case.name not in names)
        if not kept:
            raise UserError("no pair is left", "every pair was rejected", path=self.manifest.root)
        records = tuple(record for record in self.records if record["name"] not in names)
        return replace(self, manifest=replace(self.manifest, cases=kept), records=records)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `manifest.json`; returns the values for the run's summary that `load` checks."""
        self.manifest.save(folder / "manifest.json")
        stored = Manifest.load(folder / "manifest.json")
        return {"pairs": len(stored.cases), "digest": pairs_digest(stored, self.records)}

    @classmethod
    def load(cls, folder: Path, command: str = "make generate") -> Pairs:
        """Load the pairs of a finished run of medaug.generate.

        Args:
            folder: folder of the run.
            command: the command that makes the pairs; messages name it.

        Raises:
            UserError: there are no pairs, the run is unfinished, or the manifest or the provenance was changed later.
        """
        summary = finished(folder)
        if summary is None:
            raise UserError("no finished synthetic pairs", f"run medaug.generate first ({command})", path=folder)
        manifest = Manifest.load(folder / "manifest.json")
        made = {case.name: case for case in manifest.cases}
        records = tuple(r for r in provenance.read_all(folder, PAIR).values() if r["name"] in made)
        for record in records:
            if changed := _differs(made[record["name"]], record):
                raise UserError(
                    f"{changed} of {record['name']} is not what its provenance says",
                    "restore the file, or remove the folder and generate again",
                    path=folder / "manifest.json",
                )
        pairs = cls(manifest, records, Screener.load(folder))
        pairs._check_screener(folder)
        if summary.get("digest", pairs.digest) != pairs.digest:
            raise UserError(
                "manifest.json or the provenance was changed after the pairs were finished",
                "restore the files, or remove the folder and generate again",
                path=folder,
            )
        return pairs

    def _check_screener(self, folder: Path) -> None:
        own = None if self.screener is None else self.screener.digest
        for record in self.records:
            if record.get("screener") not in (None, own):
                raise UserError(
                    f"is not the record of the segmenter and rules that screened {record['name']}",
                    "restore it, or remove the folder and generate again",
                    path=folder / RECORD,
                )

    def refuse_changed(self, digests: Mapping[Path, str]) -> None:
        """Refuse files that changed since they were generated; warn about pairs whose records have no digests.

        Args:
            digests: current SHA-256 of the files, by path.

        Raises:
            UserError: a file has changed; names it.
        """
        unknown = 0
        for record in self.records:
            contents = record.get("contents")
            unknown += contents is None
            for file, digest in (contents or {}).items():
                path = Path(self.manifest.root, file)
                if digests[path] != digest:
                    raise UserError(
                        f"is not the file of {record['name']} that was generated",
                        "restore it, or remove the folder and generate again",
                        path=path,
                    )
        if unknown:
            log.warning(
                "%s: %d pairs were made before digests were recorded, so it cannot be checked whether their files were "
                "changed",
                self.manifest.root,
                unknown,
            )


def pairs_digest(manifest: Manifest, records: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the manifest and the records of pairs; the records include the digests of the files."""
    return hashlib.sha256(json.dumps([manifest.to_mapping(), records], sort_keys=True).encode()).hexdigest()


def _case(record: Mapping[str, Any]) -> Case:
    images, label = tuple(record["images"]), record["label"]
    subject, confidence = record["host_subject"], record.get("confidence")
    return Case(record["name"], images, label, subject, "train", _known(record), confidence)


def _known(record: Mapping[str, Any]) -> dict[str, str | float]:
    """The attributes of a pair that a manifest may hold."""
    return {name: value for name, value in record.get("attributes", {}).items() if name != SPACING}


def _differs(case: Case, record: Mapping[str, Any]) -> str:
    """The first field in which the manifest entry of a pair differs from its record; "" if they agree."""
    fields = {
        "image": (list(case.images), record.get("images")),
        "label": (case.label, record.get("label")),
        "confidence": (case.confidence or "", record.get("confidence", "")),
        "subject": (case.subject, record.get("host_subject")),
        "split": (case.split, "train"),
        "attributes": (dict(case.attributes), _known(record) if "attributes" in record else None),
    }
    return next((name for name, (ours, theirs) in fields.items() if theirs is not None and ours != theirs), "")
