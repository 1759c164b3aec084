"""Counts, from the records of a run, which masks and hosts its pairs use and which masks were rejected."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medaug.cohort import provenance
from medaug.cohort.provenance import PAIR, REJECTED, REJECTED_FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Where the masks of a run come from.

    Attributes:
        sources: number of pairs per mask source.
        rejections: number of masks that were rejected before an image was made for them, by kind of reason.
        attempts: number of images that were made, including those that the screening rejected.
        hosts: numbers of pairs per host, largest first.
        unchanged: most pairs with the same unchanged training mask.
    """

    sources: Mapping[str, int]
    rejections: Mapping[str, int]
    attempts: int
    hosts: Sequence[int]
    unchanged: int

    @classmethod
    def of(cls, pairs: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]] = ()) -> Usage:
        """Count the records of pairs, and of the attempts that the screening rejected."""
        kinds: Counter[str] = Counter()
        for record in (*pairs, *rejected):
            kinds.update(record.get("mask_rejections", {}))
        hosts = Counter(record["host"] for record in pairs)
        real = Counter(record["host"] for record in pairs if record["mask_source"] == "real")
        return cls(
            sources=dict(sorted(Counter(record["mask_source"] for record in pairs).items())),
            rejections=dict(sorted(kinds.items())),
            attempts=len(pairs) + len(rejected),
            hosts=sorted(hosts.values(), reverse=True),
            unchanged=max(real.values(), default=0),
        )

    @classmethod
    def read(cls, folder: Path, num: int) -> Usage:
        """Count the records of pairs 0..num-1 in the folder of a run."""
        read = (provenance.read_all(folder, PAIR), provenance.read_all(folder / REJECTED_FOLDER, REJECTED))
        made, rejected = ([record for record in records.values() if record["index"] < num] for records in read)
        return cls.of(made, rejected)

    def lines(self) -> list[str]:
        """Lines of text about the sources, the use of hosts, and rejected masks."""
        total = sum(self.sources.values())
        sources = ", ".join(f"{name} {count} ({count / total:.0%})" for name, count in self.sources.items())
        fewest, most = self.hosts[-1], self.hosts[0]
        lines = [
            f"masks: {sources}",
            f"hosts: {len(self.hosts)}, with {'' if fewest == most else f'{fewest} to '}{_pairs(most)} each",
        ]
        if self.unchanged:
            lines.append(f"unchanged training masks: at most {_pairs(self.unchanged)} each")
        if self.rejections:
            number = sum(self.rejections.values())
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.rejections.items())
            lines.append(f"masks rejected as implausible: {number} of {number + self.attempts} ({kinds})")
        return lines

    def log(self) -> None:
        """Log `lines`."""
        for line in self.lines():
            log.info("%s", line)

    def to_mapping(self) -> dict[str, Any]:
        """The counts as JSON values, for the summary of a run."""
        return {
            "mask_sources": dict(self.sources),
            "mask_rejections": dict(self.rejections),
            "most_per_host": self.hosts[0],
            "most_per_mask": self.unchanged,
        }


def _pairs(number: int) -> str:
    return f"{number} pair{'' if number == 1 else 's'}"
