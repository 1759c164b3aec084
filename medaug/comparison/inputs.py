"""The inputs of audit and benchmark: a trained generator, its pairs and its cohort, checked for leaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medaug.cohort.manifest import Case, Manifest
from medaug.comparison.guard import guarded_cohort
from medaug.data.cases import ModelCase, load_cases
from medaug.files import file_sha256
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Card, read_checkpoint


@dataclass(frozen=True)
class Inputs:
    """A generator with its pairs and cohort.

    Attributes:
        checkpoint: checkpoint of the generator.
        digest: SHA-256 of the checkpoint.
        card: card of the checkpoint.
        pairs: pairs made by the generator.
        cohort: real scans with splits.
        content: digest of the cohort's splits, schema and files.
        cache: folder of cases in model space.
    """

    checkpoint: Path
    digest: str
    card: Card
    pairs: Pairs
    cohort: Manifest
    content: str
    cache: Path

    @property
    def identity(self) -> dict[str, str]:
        """Digests of everything that a result depends on, apart from options."""
        return {"checkpoint": self.digest, "pairs": self.pairs.digest, "cohort": self.content}

    def labelled(self, split: str) -> list[Case]:
        """The cases of a split that have a label."""
        return [case for case in self.cohort.split(split) if case.label is not None]

    def load_real(self, split: str) -> list[ModelCase]:
        """The labelled cases of a split in model space."""
        return load_cases(self.cohort, self.labelled(split), self.card.preprocessing, self.cache)

    def load_synthetic(self) -> list[ModelCase]:
        """All pairs in model space."""
        return load_cases(self.pairs.manifest, self.pairs.manifest.cases, self.card.preprocessing, self.cache)


def read_inputs(checkpoint: Path, train: Path, synthetic: Path, command: str) -> Inputs:
    """Read generator, pairs and cohort, and refuse leaks (`medaug.comparison.guard`).

    Args:
        checkpoint: checkpoint of the generator.
        train: folder of the generator's training; the cache is beside it.
        synthetic: folder of the pairs.
        command: the command that makes the pairs; messages name it.

    Raises:
        UserError: the pairs are missing, unfinished or made by another checkpoint, a file is damaged, or there is a
            leak.
    """
    digest = file_sha256(checkpoint)
    pairs = Pairs.load(synthetic, command)
    card, _ = read_checkpoint(checkpoint)
    cohort, content = guarded_cohort(train, pairs, card, digest)
    return Inputs(checkpoint, digest, card, pairs, cohort, content, train.parent / "cache")
