"""Blinded reading sets: the key, the answers, and how often a reader told synthetic images from real ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from medaug.cohort.provenance import record_digest
from medaug.errors import UserError
from medaug.inputs import parsing, read_json

KEY, ANSWERS = "medaug reading key 1", "medaug answers 1"
REAL, SYNTHETIC = "real", "synthetic"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Key:
    """Which images of a reading set are synthetic, by name; `digest` identifies the set."""

    truth: Mapping[str, Mapping[str, Any]]
    digest: str

    @classmethod
    def of(cls, truth: Mapping[str, Mapping[str, Any]]) -> Key:
        """The key of a set with these images, each with `synthetic` and `case`."""
        return cls(truth, record_digest(truth))

    def to_mapping(self) -> dict[str, Any]:
        """The key as JSON values."""
        return {"format": KEY, "set": self.digest, "images": dict(self.truth)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Key:
        """Read a key.

        Raises:
            UserError: the file is not a key, or it was changed.
        """
        path, remedy = Path(path), "restore it, or make the reading set again"
        stored = read_json(path, remedy)
        with parsing(path, remedy):
            if stored["format"] != KEY:
                raise ValueError(f"format is {stored['format']!r:.40}")
            images = {
                str(name): {**image, "synthetic": bool(image["synthetic"])} for name, image in stored["images"].items()
            }
            if record_digest(images) != stored["set"]:
                raise ValueError("it was changed")
            return cls(images, stored["set"])


@dataclass(frozen=True)
class Reading:
    """What a reader answered.

    Attributes:
        synthetic: (number called synthetic, number answered) of the synthetic images.
        real: (number called real, number answered) of the real images.
        unanswered: number of images without an answer.
    """

    synthetic: tuple[int, int]
    real: tuple[int, int]
    unanswered: int

    @property
    def correct(self) -> tuple[int, int]:
        """(number of correct answers, number of answers)."""
        return self.synthetic[0] + self.real[0], self.synthetic[1] + self.real[1]

    def lines(self) -> list[str]:
        """The result as text, one string per line."""
        found = [
            f"correct: {_share(*self.correct)}; guessing gives 50%",
            f"synthetic images called synthetic: {_share(*self.synthetic)}",
            f"real images called real: {_share(*self.real)}",
        ]
        return found + ([f"without an answer: {self.unanswered}"] if self.unanswered else [])


def interval(successes: int, number: int) -> tuple[float, float]:
    """Exact 95% interval of a proportion (Clopper and Pearson 1934); 0 to 1 if `number` is 0."""
    if not number:
        return 0.0, 1.0
    found = binomtest(successes, number).proportion_ci(CONFIDENCE, "exact")
    return float(found.low), float(found.high)


def score(answers: str | os.PathLike[str], key: str | os.PathLike[str]) -> Reading:
    """Compare the answers of a reader with the key.

    Args:
        answers: the file that the page saved.
        key: the file that was written beside the reading set.

    Raises:
        UserError: a file is damaged, or the answers are those of another set.
    """
    known, path, remedy = Key.load(key), Path(answers), "save the answers again in the page"
    stored = read_json(path, remedy)
    with parsing(path, remedy):
        if stored["format"] != ANSWERS:
            raise ValueError(f"format is {stored['format']!r:.40}")
        given = {str(name): str(entry["verdict"]) for name, entry in stored["answers"].items() if entry.get("verdict")}
        if wrong := set(given.values()) - {REAL, SYNTHETIC}:
            raise ValueError(f"answer {min(wrong)!r:.40}")
        set_name = str(stored["set"])
    if set_name != known.digest or given.keys() - known.truth.keys():
        raise UserError("are the answers of another reading set", "give the key of that set", path=path)
    kinds = {}
    for kind, right in ((True, SYNTHETIC), (False, REAL)):
        said = [given[name] for name, image in known.truth.items() if image["synthetic"] is kind and name in given]
        kinds[kind] = (said.count(right), len(said))
    return Reading(kinds[True], kinds[False], len(known.truth) - len(given))


def _share(successes: int, number: int) -> str:
    low, high = interval(successes, number)
    share = f"{successes / number:.0%}" if number else "unknown"
    return f"{successes} of {number}, {share} ({CONFIDENCE:.0%} interval {low:.0%} to {high:.0%})"
