"""The primary comparison: the one question that a benchmark is run to answer, declared before its first job.

With many arms, metrics and structures, some differ by chance, so anyone who chooses the question after seeing the
answers will find a gain. The declaration is therefore written to `primary.json`, with its digest, before the first job
runs. A later change is added to the file and shown at the top of the report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medaug.errors import UserError
from medaug.evaluation.scores import MEAN_FOREGROUND, METRICS
from medaug.files import write_json
from medaug.inputs import parsing, read_json
from medaug.options import ArmsOptions, BenchmarkOptions

_REMEDY = "run the benchmark again with overwrite=true"


@dataclass(frozen=True)
class Primary:
    """The question that a benchmark is run to answer.

    Attributes:
        arm, baseline: names of arms.
        metric: name in `METRICS`.
        structure: a region or class, or `MEAN_FOREGROUND`.
        margin: the largest loss in this metric that does not matter, in the metric's unit; None: none was declared.
    """

    arm: str
    baseline: str
    metric: str
    structure: str
    margin: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Declared:
    """A declaration, and how many jobs were done when it was made: 0 means before any result was known."""

    primary: Primary
    jobs_done: int

    def to_mapping(self) -> dict[str, Any]:
        """The declaration as plain values, with its digest."""
        return {**asdict(self.primary), "sha256": self.primary.digest, "jobs_done": self.jobs_done}

    @classmethod
    def from_mapping(cls, stored: Mapping[str, Any]) -> Declared:
        """The inverse of `to_mapping`.

        Raises:
            ValueError: the declaration does not have the digest that is stored with it.
        """
        arm, baseline, metric, structure = (str(stored[key]) for key in ("arm", "baseline", "metric", "structure"))
        margin = None if stored["margin"] is None else float(stored["margin"])
        primary = Primary(arm, baseline, metric, structure, margin)
        if primary.digest != stored["sha256"]:
            raise ValueError("the declaration was edited: it does not have the digest that is stored with it")
        return cls(primary, int(stored["jobs_done"]))


def primary_of(options: BenchmarkOptions, arms: ArmsOptions, structures: Sequence[str]) -> Primary | None:
    """The primary comparison that the options declare; None if they declare none.

    Args:
        options: this function reads `primary` and `margin`.
        arms: this function reads `names`.
        structures: names of the structures that will be scored.

    Raises:
        UserError: an arm, metric or structure that this benchmark does not have.
    """
    if options.primary is None:
        return None
    arm, baseline, metric, structure = options.primary
    known = ((arm, arms.names, "arm"), (baseline, arms.names, "arm"), (metric, list(METRICS), "metric"))
    for name, names, noun in (*known, (structure, [MEAN_FOREGROUND, *structures], "structure")):
        if name not in names:
            what = f"benchmark.primary: this benchmark has no {noun} {name}"
            raise UserError(what, f"choose from {', '.join(names)}")
    if arm == baseline:
        raise UserError(f"benchmark.primary: {arm} cannot be compared with itself", "name two arms")
    return Primary(arm, baseline, metric, structure, options.margin)


def declare(folder: Path, primary: Primary | None, jobs_done: int) -> tuple[Declared, ...]:
    """Record a declaration in the folder of a benchmark, unless it is the last one on record.

    Args:
        folder: folder of the benchmark.
        primary: the declaration; None: nothing is declared now, and the record is left as it is.
        jobs_done: number of jobs that already have results.

    Returns:
        All declarations on record, the first one first.

    Raises:
        UserError: the record is damaged or was edited.
    """
    path = folder / "primary.json"
    record = load_declarations(read_json(path, _REMEDY).get("declared", []), path) if path.exists() else ()
    if primary is not None and (not record or record[-1].primary != primary):
        record = (*record, Declared(primary, jobs_done))
        write_json(path, {"declared": [one.to_mapping() for one in record]})
    return record


def load_declarations(stored: Any, source: Path) -> tuple[Declared, ...]:
    """Read declarations from plain values.

    Raises:
        UserError: the declarations are damaged or were edited; names `source`.
    """
    with parsing(source, _REMEDY):
        return tuple(Declared.from_mapping(one) for one in stored)
