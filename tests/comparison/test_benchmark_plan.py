"""The plan of a benchmark, with a clock that only the work moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from medaug.comparison import plan
from medaug.comparison.job import Job
from medaug.comparison.plan import ArmPlan, cheapest_cuts, plan_jobs, seconds_of
from medaug.errors import UserError
from medaug.options import BenchmarkOptions, Options, PseudoOptions
from medaug.reporting.console import format_duration, print_plan
from medaug.runs import claim, continues


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


class Segmenter:
    def fit(self, training_set, steps, seed, name):
        CLOCK.now += 1 + 0.5 * steps


class Cases:
    """A test set that takes two seconds per case."""

    def __init__(self, cohort, cases, scoring):
        self.cohort, self.cases, self.scoring = cohort, cases, scoring

    def score(self, job, segmenter, path):
        CLOCK.now += 2 * len(self.cases)


@dataclass(frozen=True)
class Toy:
    """A setting whose arm `taught` trains a teacher for half as long as a segmenter."""

    options: Options
    test: Any = Cases(None, range(10), None)
    elsewhere: Any = None

    def segmenter(self, job):
        return Segmenter()

    def training_set(self, job, folder):
        steps = self.options.pseudo.steps or self.options.benchmark.steps
        CLOCK.now += 0.25 * steps * (job.arm == "taught")


@pytest.fixture
def setting(monkeypatch):
    monkeypatch.setattr(plan, "time", CLOCK)
    monkeypatch.setattr(plan, "TestSet", Cases)
    return Toy(Options(benchmark=BenchmarkOptions(steps=100)))


def test_time_is_extrapolated_from_a_few_steps_and_a_few_cases(setting):
    jobs = [Job(arm, seed) for seed in (0, 1) for arm in ("plain", "taught")]
    plain, taught = plan_jobs({None: setting}, jobs, None)
    assert (plain.arm, plain.jobs, plain.done) == ("plain", 2, 0)
    assert plain.seconds == pytest.approx(1 + 0.5 * 100 + 2 * 10) and plain.seconds_left == 2 * plain.seconds
    assert taught.seconds == pytest.approx(1 + 0.75 * 100 + 2 * 10)
    longer = replace(setting, options=replace(setting.options, pseudo=PseudoOptions(steps=400)))
    (taught,) = plan_jobs({None: longer}, jobs[1:2], None)
    assert taught.seconds == pytest.approx(1 + 0.5 * 100 + 0.25 * 400 + 2 * 10), "teachers have steps of their own"
    (plain,) = plan_jobs({None: replace(setting, elsewhere=Cases(None, range(5), None))}, jobs[:1], None)
    assert plain.seconds == pytest.approx(1 + 0.5 * 100 + 2 * 15), "scans of an external test cohort are scored, too"


def test_jobs_that_are_done_are_counted_and_not_timed(setting, tmp_path):
    jobs = [Job("plain", 0), Job("plain", 1)]
    for job in jobs:
        job.scores(tmp_path).parent.mkdir(parents=True)
        job.scores(tmp_path).write_text("scores")
        job.mark_done(tmp_path)
    before = CLOCK.now
    (only,) = plan_jobs({None: setting}, jobs, tmp_path)
    assert (only.done, only.seconds_left) == (2, 0) and CLOCK.now == before
    console = Console(record=True, width=100)
    print_plan([only, ArmPlan("taught", 3, 1, 120.0)], console)
    assert "2 of 5 jobs left: about 4 min" in console.export_text()
    assert [format_duration(s) for s in (7.4, 600, 9000)] == ["7 s", "10 min", "2.5 h"]


def test_a_budget_keeps_the_question_and_leaves_out_as_little_as_suffices():
    plans = [ArmPlan(name, 1, 0, hours * 3600.0) for name, hours in (("a", 2), ("b", 2), ("c", 1), ("d", 3), ("e", 5))]

    def cut(hours, kept=("a", "b")):
        return [one.arm for one in cheapest_cuts(plans, kept, hours * 3600)]

    assert cut(13) == [] and cut(12) == ["c"] and cut(10) == ["d"] and cut(8) == ["e"]
    assert cut(7.5) == ["e", "c"] and cut(1) == ["e", "d", "c"]  # the question alone takes 4 h
    console = Console(record=True, width=200)
    print_plan(plans, console, workers=2, budget=4 * 3600, question=("a", "b"))
    assert "13.0 h, 6.5 h with 2 workers" in (text := console.export_text())
    assert "to fit the budget of 4.0 h, leave out e (2.5 h): about 4.0 h" in text
    print_plan(plans, console, budget=3600, question=("a", "b"))
    assert "still too long; fewer draws" in console.export_text()
    assert [seconds_of(word) for word in ("90min", "6h", "2.5 d", None)] == [5400, 21600, 216000, None]
    for wrong in ("6", "h", "-1h", "0h"):
        with pytest.raises(UserError, match="as in 6h"):
            seconds_of(wrong)


def test_a_folder_is_continued_only_with_its_own_configuration(tmp_path):
    folder, identity = tmp_path / "run", {"benchmark": {"steps": 3}, "arms": {"names": ["a", "b"]}}
    more = identity | {"arms": {"names": ["a", "b", "c"]}}
    assert not continues(folder, identity)
    claim(folder, identity, overwrite=False)
    assert continues(folder, identity) and continues(folder, more, ("arms.names",)) and not continues(folder, more)
