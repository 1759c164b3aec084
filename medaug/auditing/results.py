"""The result of an audit, with saving and loading.

`faithfulness.json` and `faithfulness.csv` have the keys and columns of the first version. In addition, the key
`measures` has every measure of the table by name, and `measures.csv` has every value of every measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.csv_files import write_csv
from medaug.data.cases import ModelCase
from medaug.evaluation.statistics import Interval, bootstrap_mean
from medaug.files import write_json
from medaug.inputs import parsing, read_json

REMEDY = "remove the folder and run medaug.audit again"
FAITHFULNESS = ("real_validation", "synthetic", "shuffled")
GUIDANCE = "guidance_"
"""Prefix of the names of the images of a guidance scale, such as `guidance_3`."""


@dataclass(frozen=True)
class Group:
    """The values of a measure on one set of images.

    Attributes:
        images: which images, such as "synthetic" or "real_validation".
        interval: mean with its interval over subjects; without bounds (NaN) if the measure is of the set as a whole.
        rows: (case, subject, value) of each image; empty if the measure is of the set as a whole, and in a result that
            was read from its files.
    """

    images: str
    interval: Interval
    rows: Sequence[tuple[str, str, float]] = ()

    @classmethod
    def of_cases(cls, images: str, cases: Sequence[ModelCase], values: NDArray[np.floating], seed: int) -> Group:
        """Make a group with one value per case.

        Args:
            images: which images.
            cases: the cases.
            values: (num_cases,).
            seed: seed of the interval.
        """
        subjects = [case.case.subject for case in cases]
        names = [case.case.name for case in cases]
        rows = [(name, subject, float(v)) for name, subject, v in zip(names, subjects, values, strict=True)]
        return cls(images, bootstrap_mean(values, subjects, seed), rows)

    @classmethod
    def of_set(cls, images: str, value: float, num_images: int) -> Group:
        """Make a group with one value for a whole set of images."""
        return cls(images, Interval(value, math.nan, math.nan, num_images, num_images))


@dataclass(frozen=True)
class Audit:
    """The results of an audit.

    Attributes:
        smoke: whether this is a smoke run, which only shows that everything runs.
        results: groups of values by measure.
        floor: mean foreground Dice of the trivial baseline; None in files of earlier versions.
        ratio: the judge's Dice on synthetic images over that on real ones; None if the judge has learned nothing.
        ratio_low: the same for the lower bound of the interval; None also if there is no interval.
        judge: its steps, seed and number of training cases; None in files of earlier versions.
    """

    smoke: bool
    results: Mapping[str, Sequence[Group]]
    floor: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    judge: Mapping[str, int] | None = None

    def interval(self, measure: str, images: str) -> Interval | None:
        """Mean of a measure on one set of images; None if that was not measured."""
        return next((g.interval for g in self.results.get(measure, ()) if g.images == images), None)

    @property
    def guidance(self) -> dict[float, Interval]:
        """Faithfulness by guidance scale."""
        return {float(g.images.removeprefix(GUIDANCE)): g.interval for g in self.results.get("guidance", ())}

    def save(self, folder: Path) -> list[Path]:
        """Write faithfulness.json, faithfulness.csv and measures.csv; returns their paths.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        rows = [(m, g.images, *row) for m, groups in self.results.items() for g in groups for row in g.rows]
        judged = [row[1:] for row in rows if row[0] in ("faithfulness", "guidance")]
        write_csv(folder / "measures.csv", ("measure", "images", "case", "subject", "value"), rows)
        write_csv(folder / "faithfulness.csv", ("images", "case", "subject", "dice"), judged)
        write_json(folder / "faithfulness.json", self._to_mapping())
        return [folder / name for name in ("faithfulness.json", "faithfulness.csv", "measures.csv")]

    def _to_mapping(self) -> dict[str, Any]:
        measures = {
            measure: {group.images: _to_plain(group.interval) for group in groups}
            for measure, groups in self.results.items()
        }
        sharpness = {g.images.removesuffix("_validation"): g.interval.mean for g in self.results.get("sharpness", ())}
        return {
            "smoke": self.smoke,
            **measures.get("faithfulness", {}),
            "floor": self.floor,
            "ratio": self.ratio,
            "ratio_low": self.ratio_low,
            "guidance": [{"guidance_scale": scale, **_to_plain(one)} for scale, one in self.guidance.items()],
            "judge": self.judge,
            "sharpness": sharpness,
            "measures": measures,
        }

    @classmethod
    def load(cls, folder: Path) -> Audit:
        """Read what `save` of this or an earlier version wrote, except the values of single images.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = folder / "faithfulness.json"
        stored = read_json(path, REMEDY)
        with parsing(path, REMEDY):
            measures = stored.get("measures") or _measures_of_earlier_versions(stored)
            results = {
                measure: [Group(images, _interval(row)) for images, row in groups.items()]
                for measure, groups in measures.items()
            }
            numbers = {key: stored.get(key) for key in ("floor", "ratio", "ratio_low")}
            plain = {key: None if value is None else float(value) for key, value in numbers.items()}
            return cls(smoke=bool(stored.get("smoke")), results=results, judge=stored.get("judge"), **plain)


def _measures_of_earlier_versions(stored: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The `measures` of a file that has none; any part of it may be missing."""
    sharpness = stored.get("sharpness") or {}
    return {
        "faithfulness": {name: stored[name] for name in FAITHFULNESS if stored.get(name)},
        "guidance": {f"{GUIDANCE}{row['guidance_scale']:g}": row for row in stored.get("guidance") or []},
        "sharpness": {
            {"real": "real_validation"}.get(name, name): {"mean": value, "low": None, "high": None, "n": 0}
            for name, value in sharpness.items()
        },
    }


def _to_plain(interval: Interval) -> dict[str, Any]:
    # JSON has no NaN, which the bounds are if there is only one subject.
    low, high = (None if math.isnan(bound) else bound for bound in (interval.low, interval.high))
    return {"mean": interval.mean, "low": low, "high": high, "n": interval.n}


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if row[key] is None else float(row[key]) for key in ("low", "high"))
    return Interval(float(row["mean"]), low, high, int(row["n"]), int(row["n"]))
