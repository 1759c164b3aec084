"""How far experiments are, from folders in known states and with known times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from medaug import status
from medaug.comparison.job import Job
from medaug.config import load_options
from medaug.errors import UserError
from medaug.locks import acquire
from medaug.ownership import mark
from medaug.run_status import Standing, standings


def stage(folder: Path, config: dict, finished: bool = False) -> Path:
    folder.mkdir(parents=True)
    mark(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if finished:
        (folder / "finished.json").write_text("{}")
    return folder


@pytest.fixture
def runs(tmp_path):
    """One experiment in every state, and one of a sweep, of which only the training began."""
    train = stage(tmp_path / "a" / "train", {"trainer": {"max_steps": 100}})
    (train / "validation.csv").write_text("step,loss\n10,1\n20,0.9\n")
    os.utime(train / "config.yaml", (1000, 1000))
    os.utime(train / "validation.csv", (1200, 1200))  # 10 s a step
    pairs = stage(tmp_path / "a" / "synthetic", {"generate": {"num": 8}}, finished=True)
    (pairs / "provenance.jsonl").write_text("")
    settings = {"seeds": [0, 1], "labelled": ["4", "all"], "draws": [0, 1, 2], "folds": None}
    bench = stage(tmp_path / "a" / "benchmark", {"arms": {"names": ["x", "y"]}, "benchmark": settings})
    jobs = [Job("x", seed, None, 4, draw) for seed in (0, 1) for draw in (0, 1)]
    for number, job in enumerate([*jobs, Job("gone", 0)]):  # an arm that is no longer asked for does not count
        path = job.scores(bench)
        path.parent.mkdir(parents=True)
        path.write_text("scores")
        path.with_suffix(".sha256").write_text("digest")
        os.utime(path, (5000 + 60 * number,) * 2)
    stage(tmp_path / "sweep" / "trainer.seed=1" / "b" / "train", {"trainer": {"max_steps": None}})
    return tmp_path


def test_what_is_done_and_left_at_the_pace_of_the_latest_results(runs):
    found = standings(runs)
    jobs = 2 * 2 * (3 + 1)
    assert found[:4] == [
        Standing("a", "train", "stopped", 20, 100, "steps", pytest.approx(800)),
        Standing("a", "synthetic", "finished", 0, 8, "pairs"),
        Standing("a", "benchmark", "stopped", 4, jobs, "jobs", pytest.approx(60 * (jobs - 4))),
        Standing("a", "audit", "not started"),
    ]
    assert found[4] == Standing("sweep/trainer.seed=1/b", "train", "stopped", 0, None, "steps")
    assert [one.state for one in found[5:]] == ["not started"] * 3


def test_a_locked_folder_is_running_and_a_folder_without_experiments_is_refused(runs, tmp_path):
    lock = acquire(runs / "a" / "benchmark" / ".lock")
    assert lock is not None and standings(runs)[2].state == "running"
    lock.release()
    assert standings(runs)[2].state == "stopped"
    for path, reason in ((runs / "none", "no such folder"), (runs / "a" / "benchmark" / "jobs", "no experiment")):
        with pytest.raises(UserError, match=reason):
            standings(path)


def test_the_stage_prints_a_line_per_stage(runs, capsys):
    status.main(load_options("status", [f"runs={runs}"]))
    text = capsys.readouterr().out
    assert "4 of 16 jobs" in text and "about 12 min" in text and "20 of 100 steps" in text and "0 of ? steps" in text


def test_named_sets_of_pairs_have_lines_of_their_own(runs):
    stage(runs / "a" / "synthetic-strong", {"generate": {"num": 5}})
    assert Standing("a", "synthetic-strong", "stopped", 0, 5, "pairs") in standings(runs)
