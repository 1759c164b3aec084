"""The predictions of a run, their scores, and the means over subjects."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medaug.cohort import provenance
from medaug.csv_files import write_csv
from medaug.evaluation.statistics import bootstrap_mean
from medaug.files import write_json

log = logging.getLogger(__name__)

COLUMNS = ("case", "subject", "structure", "metric", "value")
RECORD = "provenance.jsonl"


@dataclass(frozen=True)
class Predictions:
    """The finished predictions of a run, in the order of its cases.

    Attributes:
        records: per scan, its index, name, subject, files by kind, and scores (structure, metric, value).
    """

    records: tuple[Mapping[str, Any], ...]

    @classmethod
    def load(cls, folder: Path) -> Predictions:
        """Load the recorded predictions in the folder of a run, finished or not."""
        found = provenance.read(folder / RECORD, provenance.PREDICTION).values()
        return cls(tuple(sorted(found, key=lambda record: record["index"])))

    def save(self, folder: Path, seed: int) -> bool:
        """Write `metrics.csv`, and `metrics.json` with means and 95% intervals over subjects; log the means.

        Args:
            folder: folder of the run.
            seed: seed of the bootstrap.

        Returns:
            Whether there are scores; without any, nothing is written.
        """
        rows = [(r["name"], r["subjects"][0], *score) for r in self.records for score in r["scores"]]
        defined = [row for row in rows if row[4] is not None]
        if not defined:
            return False
        write_csv(folder / "metrics.csv", COLUMNS, [(*row[:4], "" if row[4] is None else row[4]) for row in rows])
        summary = []
        for structure, metric in dict.fromkeys((row[2], row[3]) for row in defined):
            chosen = [row for row in defined if row[2:4] == (structure, metric)]
            interval = bootstrap_mean(np.array([row[4] for row in chosen]), [row[1] for row in chosen], seed)
            low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
            about = {"structure": structure, "metric": metric, "mean": interval.mean, "low": low, "high": high}
            summary.append(about | {"n": interval.n, "subjects": interval.clusters})
            log.info(
                "%s, %s: %.3f on %d scans of %d subjects",
                structure,
                metric,
                interval.mean,
                interval.n,
                interval.clusters,
            )
        write_json(folder / "metrics.json", summary)
        return True
