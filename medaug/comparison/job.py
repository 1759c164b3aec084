"""A job trains and scores one segmenter; it has its own folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medaug.errors import UserError
from medaug.files import atomic_write, file_sha256
from medaug.inputs import read_text

CHOICES = ("fold", "labelled", "draw")
"""The optional attributes of a job; all are None in the simplest benchmark."""

REMOVE = "remove the scores.csv of that arm and seed below jobs/, and run the benchmark again to repeat the job"


@dataclass(frozen=True)
class Job:
    """A segmenter to be trained and scored.

    Attributes:
        arm: name of an arm.
        seed: seed of the segmenter's training.
        fold: number of the fold that validates; None: the splits of the cohort's manifest.
        labelled: number of training subjects that keep their labels; None: all of them.
        draw: seed of the random choice of those subjects; None: all keep their labels.
    """

    arm: str
    seed: int
    fold: int | None = None
    labelled: int | None = None
    draw: int | None = None

    def __str__(self) -> str:
        """Name of the job in messages and the progress bar."""
        parts = [self.arm, *(f"{name} {value}" for name, value in self._choices), f"seed {self.seed}"]
        return ", ".join(parts)

    @property
    def _choices(self) -> list[tuple[str, int]]:
        return [(name, value) for name in CHOICES if (value := getattr(self, name)) is not None]

    def scores(self, folder: Path) -> Path:
        """The job's score file below the folder of the benchmark."""
        return self.folder(folder.joinpath("jobs", self.arm.replace("+", "_"))) / "scores.csv"

    def folder(self, above: Path) -> Path:
        """A folder for what all arms with the same labels and seed share."""
        return above.joinpath(*(f"{name}_{value}" for name, value in self._choices), f"seed_{self.seed}")

    def scores_elsewhere(self, folder: Path) -> Path:
        """The job's scores on an external test cohort."""
        return self.scores(folder).with_name("scores_external.csv")

    def score_files(self, folder: Path) -> list[Path]:
        """The score files that the job has written."""
        return [path for path in (self.scores(folder), self.scores_elsewhere(folder)) if path.is_file()]

    def is_done(self, folder: Path) -> bool:
        """Whether the job's scores and their digest exist."""
        path = self.scores(folder)
        return path.is_file() and _digest_file(path).is_file()

    def mark_done(self, folder: Path) -> None:
        """Write the digest of the job's scores, in the format that `sha256sum -c` reads.

        Call this last, because a job without a digest is repeated.
        """
        with atomic_write(_digest_file(self.scores(folder))) as temporary:
            temporary.write_text(self._digest_lines(folder))

    def _digest_lines(self, folder: Path) -> str:
        return "".join(map(_digest_line, self.score_files(folder)))

    def refuse_edited(self, folder: Path) -> None:
        """Check the job's scores against their digest.

        Raises:
            UserError: the scores are missing, or they are not those that the job wrote.
        """
        path = self.scores(folder)
        if not self.is_done(folder) or read_text(_digest_file(path)) != self._digest_lines(folder):
            raise UserError("it or its digest was changed after the job wrote it", REMOVE, path=path)


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest_line(path: Path) -> str:
    return f"{file_sha256(path)}  {path.name}\n"
