"""Reviews of pairs made in a gallery: each pair is accepted or rejected, and can have a note."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medaug.errors import UserError
from medaug.inputs import parsing, read_json

FORMAT = "medaug reviews 1"
ACCEPTED, REJECTED = "accepted", "rejected"
_REMEDY = "save it again in the gallery"


@dataclass(frozen=True)
class Reviews:
    """Verdicts (`ACCEPTED` or `REJECTED`) and notes by the name of the pair; a pair may lack either."""

    verdicts: Mapping[str, str]
    notes: Mapping[str, str]

    @property
    def rejected(self) -> frozenset[str]:
        """Names of the pairs that were rejected."""
        return frozenset(name for name, verdict in self.verdicts.items() if verdict == REJECTED)

    @classmethod
    def load(cls, path: str | os.PathLike[str], names: Collection[str]) -> Reviews:
        """Read the file that a gallery saved.

        Args:
            path: the file.
            names: names of all pairs of the run.

        Raises:
            UserError: the file is not a file of reviews, or it names pairs that the run does not have.
        """
        path = Path(path)
        stored = read_json(path, _REMEDY)
        with parsing(path, _REMEDY):
            if stored["format"] != FORMAT:
                raise ValueError(f"format is {stored['format']!r:.40}")
            entries = {str(name): dict(entry) for name, entry in stored["pairs"].items()}
            verdicts = {name: str(entry["verdict"]) for name, entry in entries.items() if entry.get("verdict")}
            notes = {name: str(entry["note"]) for name, entry in entries.items() if entry.get("note")}
            if wrong := set(verdicts.values()) - {ACCEPTED, REJECTED}:
                raise ValueError(f"verdict {min(wrong)!r:.40}")
        if unknown := sorted(entries.keys() - set(names)):
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(
                f"names {unknown[0]}{more}, not among the pairs of this run",
                "give the reviews of these pairs",
                path=path,
            )
        return cls(verdicts, notes)
