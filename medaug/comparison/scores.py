"""The scores of jobs, case by case, and the file that they are stored in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medaug.comparison.job import CHOICES, Job
from medaug.csv_files import number, read_csv, write_csv
from medaug.errors import UserError
from medaug.evaluation.scores import MEAN_FOREGROUND, METRICS
from medaug.inputs import parsing

COLUMNS = ("arm", "seed", "case", "class", "metric", "value")
Key = tuple[Job, str, str, str]
"""(job, case, structure, metric)."""


@dataclass(frozen=True)
class Scores:
    """Values by job, case, structure and metric.

    Attributes:
        values: the values, in the order of the file.
        structures: the regions or foreground classes that were scored, in order.
        source: file to name in a message about a missing value.
        remedy: advice to give in that message.
    """

    values: Mapping[Key, float]
    structures: tuple[str, ...]
    source: Path
    remedy: str

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that every job measured, in the order of `METRICS`. Dice is always listed: verdicts need it."""
        measured: dict[str, set[Job]] = {}
        for job, _, _, metric in self.values:
            measured.setdefault(metric, set()).add(job)
        jobs = set().union(*measured.values())
        return [name for name in METRICS if measured.get(name) == jobs or name == "dice"]

    @cached_property
    def _measured(self) -> set[tuple[str, str]]:
        return {(structure, metric) for _, _, structure, metric in self.values}

    def measures(self, structure: str, metric: str) -> bool:
        """Whether a structure has a metric; those that count lesions are measured only for structures with lesions."""
        return structure == MEAN_FOREGROUND or (structure, metric) in self._measured

    def table(
        self,
        jobs: Sequence[Job],
        cases: Iterable[str],
        structure: str,
        metric: str,
        absolute: bool = False,
        fold_of: Mapping[str, int] = MappingProxyType({}),
    ) -> NDArray[np.float64]:
        """Values (num_jobs, num_cases) for one structure.

        Args:
            jobs: the rows of the table.
            cases: names of the cases, the columns of the table.
            structure: one of `structures`, or `MEAN_FOREGROUND`, the mean over the structures that have the metric.
            metric: name in `METRICS`.
            absolute: whether to take absolute values, before structures are averaged.
            fold_of: the fold that scored each case; each row is then made of the jobs of all folds.

        Raises:
            UserError: a value is missing.
        """
        cases = list(cases)
        if structure == MEAN_FOREGROUND:
            parts = [one for one in self.structures if self.measures(one, metric)] or self.structures
            return np.asarray(
                np.mean([self.table(jobs, cases, one, metric, absolute, fold_of) for one in parts], axis=0)
            )
        try:
            of_fold = {
                (job, k): job if k is None else replace(job, fold=k) for job in jobs for k in {None, *fold_of.values()}
            }
            keys = [[(of_fold[job, fold_of.get(case)], case, structure, metric) for case in cases] for job in jobs]
            values = np.array([[self.values[key] for key in row] for row in keys])
        except KeyError as error:
            job, case, *_ = error.args[0]
            raise UserError(
                f"no {metric} of arm {job.arm}, class {structure}, seed {job.seed}, case {case}",
                self.remedy,
                path=self.source,
            ) from None
        return np.abs(values) if absolute else values

    def save(self, path: Path) -> None:
        """Write all values, one per row.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        # A file has these columns only if a job has a value for them.
        extra = [name for name in CHOICES if any(getattr(job, name) is not None for job, *_ in self.values)]
        write_csv(
            path,
            (*COLUMNS, *extra),
            (
                (job.arm, job.seed, case, structure, metric, value, *(getattr(job, name) for name in extra))
                for (job, case, structure, metric), value in self.values.items()
            ),
        )

    @classmethod
    def load(cls, paths: Iterable[Path], structures: Iterable[str], source: Path, remedy: str) -> Scores:
        """Read one or several files that `save` wrote; for the other arguments see the class.

        Raises:
            UserError: a file is missing or damaged.
        """
        values: dict[Key, float] = {}
        for path in paths:
            for row in read_csv(path, COLUMNS, remedy):
                with parsing(path, remedy):
                    choices = {name: int(row[name]) for name in CHOICES if row.get(name)}
                    job = Job(row["arm"], int(row["seed"]), **choices)
                values[job, row["case"], row["class"], row["metric"]] = number(row["value"], path, remedy)
        return cls(values, tuple(structures), source, remedy)
