"""What a benchmark would do, and how long it would take."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medaug.comparison.job import Job
from medaug.comparison.jobs import TestSet
from medaug.comparison.setting import Setting
from medaug.errors import UserError

FEW_STEPS = (2, 6)
"""Optimisation steps of the two short trainings that measure the time per step."""
FEW_CASES = 2


@dataclass(frozen=True)
class ArmPlan:
    """The jobs of an arm.

    Attributes:
        arm: name of the arm.
        jobs: number of jobs.
        done: how many of them are done.
        seconds: estimated time of one job; 0 if all jobs are done.
    """

    arm: str
    jobs: int
    done: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """Estimated time of the jobs that are left."""
        return (self.jobs - self.done) * self.seconds


_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(budget: str | None) -> float | None:
    """Seconds of a time such as `90min`, `6h` or `2.5d`.

    Raises:
        UserError: it is not a positive number with one of these units.
    """
    if budget is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", budget.strip())
    if found is None or float(found[1]) <= 0:
        raise UserError(f"benchmark.budget={budget}", "write a number with s, min, h or d, as in 6h")
    return float(found[1]) * _UNITS[found[2]]


def cheapest_cuts(plans: Sequence[ArmPlan], kept: Collection[str], seconds: float) -> list[ArmPlan]:
    """The arms to leave out so that the others fit a time: as few as possible, the most expensive first.

    Args:
        plans: all arms.
        kept: arms that the question needs.
        seconds: the time, in which the jobs of all arms run one after another.

    Returns:
        The arms; all that may be left out if even that does not suffice.
    """
    total, cuts = sum(one.seconds_left for one in plans), []
    free = [one for one in plans if one.arm not in kept and one.seconds_left > 0]
    for one in sorted(free, key=lambda one: -one.seconds_left):
        if total <= seconds:
            break
        # The smallest arm that suffices by itself, if there is one, or else the largest.
        enough = [other for other in free if other not in cuts and total - other.seconds_left <= seconds]
        chosen = min(enough, key=lambda other: other.seconds_left) if enough else one
        cuts.append(chosen)
        total -= chosen.seconds_left
    return cuts


def plan_jobs(settings: Mapping[int | None, Setting], jobs: Iterable[Job], folder: Path | None) -> list[ArmPlan]:
    """The jobs of every arm, and the time that they would take if this machine stays as busy as it is now.

    Args:
        settings: setting of each fold.
        jobs: all jobs of the benchmark.
        folder: folder of the benchmark, which holds the jobs that are done; None: no job is done.

    Raises:
        UserError: an arm cannot be trained.
    """
    by_arm: dict[str, list[Job]] = {}
    for job in jobs:
        by_arm.setdefault(job.arm, []).append(job)
    plans = []
    for arm, own in by_arm.items():
        left = [job for job in own if folder is None or not job.is_done(folder)]
        seconds = estimate(settings[left[0].fold], left[0]) if left else 0.0
        plans.append(ArmPlan(arm, len(own), len(own) - len(left), seconds))
    return plans


def estimate(setting: Setting, job: Job) -> float:
    """Seconds of a job, extrapolated from two trainings of a few steps and from scoring a few cases."""
    few, more = FEW_STEPS
    short, longer = (_training_seconds(setting, job, steps) for steps in FEW_STEPS)
    per_step = max(longer[0] - short[0], 0.0) / (more - few)
    start = max(short[0] - few * per_step, 0.0)
    return start + setting.options.benchmark.steps * per_step + longer[1]


def _training_seconds(setting: Setting, job: Job, steps: int) -> tuple[float, float]:
    """Seconds of a training of a few steps, and of scoring all test cases."""
    benchmark, pseudo = setting.options.benchmark, setting.options.pseudo
    if pseudo.steps is not None:  # shortened in proportion, so that the time of the teachers is extrapolated with it
        pseudo = replace(pseudo, steps=max(1, round(pseudo.steps * steps / benchmark.steps)))
    benchmark = replace(benchmark, steps=steps)
    shortened = replace(setting, options=replace(setting.options, benchmark=benchmark, pseudo=pseudo))
    test = TestSet(setting.test.cohort, setting.test.cases[:FEW_CASES], setting.test.scoring)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        segmenter = shortened.segmenter(job)
        segmenter.fit(shortened.training_set(job, Path(folder)), steps, job.seed, f"{job}, timing")
        trained = time.perf_counter()
        test.score(job, segmenter, Path(folder))
        scored = time.perf_counter()
    num_cases = len(setting.test.cases) + (0 if setting.elsewhere is None else len(setting.elsewhere.cases))
    return trained - begin, (scored - trained) / len(test.cases) * num_cases
