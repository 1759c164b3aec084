"""The attempts at each pair that are on record: which pairs are finished, which were rejected, and which come next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medaug.cohort import provenance
from medaug.cohort.provenance import PAIR, REJECTED, REJECTED_FOLDER


@dataclass
class Attempts:
    """The attempts of a run.

    Pairs are made in batches, and the composition of a batch changes the last digits of its images. So that an
    interrupted run ends with the same bits, the rejected pairs of a batch are tried again together, in turns: turn t
    holds the pairs of the batch that were rejected t times. If only a part of a turn is on record, the whole turn is
    sampled again.

    Attributes:
        retries: how many times a rejected pair is tried again.
        accepted: numbers of the finished pairs.
        rejected: attempt numbers that were rejected, ascending, by the number of the pair.
    """

    retries: int = 0
    accepted: set[int] = field(default_factory=set)
    rejected: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, retries: int) -> Attempts:
        """Read the records in the folder of a run, whichever process wrote them."""
        attempts = cls(retries, {index for index, _ in provenance.read_all(folder, PAIR)})
        for index, attempt in provenance.read_all(folder / REJECTED_FOLDER, REJECTED):
            attempts.reject(index, attempt)
        return attempts

    def reject(self, index: int, attempt: int) -> None:
        """Add a rejected attempt."""
        self.rejected.setdefault(index, []).append(attempt)

    def settled(self, index: int) -> bool:
        """Whether a pair is finished or given up."""
        return index in self.accepted or self.given_up(index)

    def given_up(self, index: int) -> bool:
        """Whether a pair was rejected so often that it is not tried again."""
        return len(self.rejected.get(index, ())) > self.retries

    def missing(self, num: int) -> int:
        """Number of pairs in 0..num-1 that are neither finished nor given up."""
        return sum(not self.settled(index) for index in range(num))

    def turn(self, batch: Iterable[int], turn: int) -> list[tuple[int, int]]:
        """The pairs of a batch that are sampled together in this turn, each with its first attempt number."""
        members = ((index, self.rejected.get(index, ())) for index in batch)
        return [(index, tried[turn - 1] + 1 if turn else 0) for index, tried in members if len(tried) >= turn]

    def open(self, indices: Sequence[int], turn: int) -> list[int]:
        """The pairs of a turn whose result is not on record yet."""
        return [i for i in indices if i not in self.accepted and len(self.rejected.get(i, ())) == turn]
