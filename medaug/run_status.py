"""How far the experiments of a folder are: what is finished, running, stopped and left, and how long it will take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from medaug.cohort.provenance import PAIR, read_all
from medaug.comparison.job import Job
from medaug.csv_files import read_csv
from medaug.errors import UserError
from medaug.inputs import read_yaml
from medaug.locks import is_free
from medaug.ownership import finished, is_marked
from medaug.paths import sets_of_pairs

STAGES = ("train", "synthetic", "audit", "benchmark")
"""Folders of the stages that an experiment goes through, in order."""
_PACE = 10  # number of latest results that the pace is computed from


@dataclass(frozen=True)
class Standing:
    """How far one stage of an experiment is.

    Attributes:
        experiment: path of the experiment below the folder of runs.
        stage: name of the stage's folder.
        state: "finished", "running", "stopped" (killed or failed; the same command continues it) or "not started".
        done, total: numbers of jobs, pairs or steps, see `unit`; None if nothing is counted or the total is unknown.
        unit: what is counted.
        seconds_left: time left at the pace of the latest results; None if it is unknown or nothing is left.
    """

    experiment: str
    stage: str
    state: str
    done: int | None = None
    total: int | None = None
    unit: str = ""
    seconds_left: float | None = None


def standings(runs: Path) -> list[Standing]:
    """Every stage of every experiment below a folder, sweeps included; experiments in order of their paths.

    Raises:
        UserError: there is no such folder, or no experiment in it, or a file is damaged.
    """
    if not runs.is_dir():
        raise UserError("no such folder", "name the folder of the experiments: runs=DIR", path=runs)
    found = []
    for folder in _experiments(runs):
        name = folder.relative_to(runs).as_posix()
        stages = [one.name for stage in (*STAGES, "tuning") for one in sets_of_pairs(folder, stage) if is_marked(one)]
        predictions = sorted((folder / "predictions").glob("*/"))
        stages += [f"predictions/{one.name}" for one in predictions if is_marked(one)]
        found += [_standing(name, stage, folder / stage) for stage in stages]
        found += [Standing(name, stage, "not started") for stage in STAGES if stage not in stages]
    if not found:
        raise UserError("no experiment of medaug", "name the folder of the experiments: runs=DIR", path=runs)
    return found


def _experiments(runs: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(runs):
        folders.sort()
        here = Path(path)
        if any(is_marked(here / name) for name in (*STAGES, "tuning")) or (here / "predictions").is_dir():
            folders.clear()
            yield here


def _standing(experiment: str, stage: str, folder: Path) -> Standing:
    locks = [folder / ".lock", *folder.glob(".lock.rank*")]
    running = any(is_free(lock) is False for lock in locks)
    state = "running" if running else "stopped" if finished(folder) is None else "finished"
    counted = _COUNTERS.get(stage.partition("-")[0])
    if counted is None:
        return Standing(experiment, stage, state)
    times, total, unit = counted(folder, read_yaml(folder / "config.yaml"))
    left = None
    if state != "finished" and total is not None and len(times) > 1 and total > len(times):
        recent = times[-_PACE:]
        left = (recent[-1] - recent[0]) / (len(recent) - 1) * (total - len(times))
    return Standing(experiment, stage, state, len(times), total, unit, left)


def _jobs(folder: Path, config: Mapping[str, Any]) -> tuple[list[float], int, str]:
    """The times at which jobs of a benchmark were done, the number of all jobs, and the unit."""
    settings = config["benchmark"]
    folds = settings.get("folds")
    counts = [None if word == "all" else int(word) for word in settings.get("labelled", ["all"])]
    draws = [(num, draw) for num in counts for draw in ([None] if num is None else settings.get("draws", [0]))]
    rows = product(config["arms"]["names"], settings["seeds"], [None] if folds is None else range(folds), draws)
    jobs = [Job(arm, seed, fold, *draw) for arm, seed, fold, draw in rows]
    return _times(job.scores(folder) for job in jobs if job.is_done(folder)), len(jobs), "jobs"


def _pairs(folder: Path, config: Mapping[str, Any]) -> tuple[list[float], int, str]:
    made = (folder / str(record["label"]) for record in read_all(folder, PAIR).values())
    return _times(made), int(config["generate"]["num"]), "pairs"


def _steps(folder: Path, config: Mapping[str, Any]) -> tuple[Sequence[float], int | None, str]:
    """See `_jobs`; steps up to the last validation count, spread evenly over the time since config.yaml was written."""
    total, path = config["trainer"]["max_steps"], folder / "validation.csv"
    rows = read_csv(path, ("step",), "train again") if path.exists() else []
    done = int(rows[-1]["step"]) if rows else 0
    begin = (folder / "config.yaml").stat().st_mtime
    each = (path.stat().st_mtime - begin) / done if done else 0.0
    return [begin + each * step for step in range(1, done + 1)], total, "steps"


def _times(paths: Iterator[Path]) -> list[float]:
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_mtime)
    return sorted(found)


_COUNTERS = {"train": _steps, "synthetic": _pairs, "benchmark": _jobs, "tuning": _jobs}
