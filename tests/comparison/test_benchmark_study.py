"""A study: its commands, and the shares of a gap whose answers are known."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.comparison.job import REMOVE, Job
from medaug.comparison.scores import Scores
from medaug.config import load_options
from medaug.csv_files import read_csv

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
assert SPEC is not None and SPEC.loader is not None
study = sys.modules["study"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)
FEW = yaml.safe_load((ROOT / "benchmarks" / "studies" / "few_labels.yaml").read_text())
PLAN = FEW | {"draws": [0, 1], "runs": "r", "start": ["base", 8], "goal": ["base", "all"]}
SCHEMA = LabelSchema(((0, "background"), (1, "a"), (2, "b")))
CASES = tuple(Case(f"c{i}", ("i.nii",), "l.nii", f"s{i // 2}", "test") for i in range(12))
LEVELS = {("base", 8): 0.8, ("half", 8): 0.825, ("worse", 8): 0.79, ("base", None): 0.85}


def plant(root, folder, draw, names, seeds=2):
    """Jobs whose Dice is that of LEVELS, plus what is common to all arms: the draw, the case, the seed."""
    run = root / "r" / folder / PLAN["experiment"]
    (run / "train").mkdir(parents=True)
    Manifest("toy", "", ("T1",), SCHEMA, CASES, str(root)).save(run / "train" / "manifest.json")
    for (arm, labelled), level in LEVELS.items():
        if arm not in names or (labelled is None) != (draw is None):
            continue
        for seed in range(seeds):
            job = Job(arm, seed, labelled=labelled, draw=draw)
            noise = 0.01 * seed + 0.001 * (draw or 0)
            values = {
                (job, case.name, name, "dice"): level + noise + 0.002 * i + (0.01 if name == "a" else -0.01)
                for i, case in enumerate(CASES)
                for name in ("a", "b")
            }
            path = job.scores(run / "benchmark")
            path.parent.mkdir(parents=True)
            Scores(values, ("a", "b"), path, REMOVE).save(path)
            job.mark_done(run / "benchmark")


@pytest.mark.slow
def test_every_command_of_a_study_is_one_that_its_stage_accepts():
    found = list(study.commands(FEW))
    assert len(found) == 2 + 3 * len(FEW["draws"]) and found[0][0] == "all"
    for _, (module, *words) in found:
        options = load_options(module.removeprefix("medaug."), words)
        assert options.experiment == "hippocampus_few"
    assert options.benchmark.draws == [4] and options.runs.endswith("draw_4")


@pytest.mark.slow
def test_a_study_without_draws_has_only_the_commands_of_once():
    tail = yaml.safe_load((ROOT / "benchmarks" / "studies" / "tail.yaml").read_text())
    found = list(study.commands(tail))
    assert [module for _, (module, *_) in found] == ["medaug.train", "medaug.generate", "medaug.benchmark"]
    for _, (module, *words) in found:
        options = load_options(module.removeprefix("medaug."), words)
        assert options.experiment == "hippocampus_tail"


def test_shares_of_the_gap_are_those_that_were_planted(tmp_path):
    plant(tmp_path, "all", None, ("base",))
    plant(tmp_path, "draw_0", 0, ("base", "half", "worse"))
    rows = study.compare(PLAN, *study.read_tables(PLAN, tmp_path))
    assert {(row.arm, row.labelled): round(row.share, 2) for row in rows} == {
        ("base", "all"): 1,
        ("base", "8"): 0,
        ("half", "8"): 0.5,
        ("worse", "8"): -0.2,
    }
    plant(tmp_path, "draw_1", 1, ("base", "half"))
    by_arm = {(row.arm, row.labelled): row for row in study.compare(PLAN, *study.read_tables(PLAN, tmp_path))}
    half = by_arm["half", "8"]
    assert (half.draws, half.seeds, half.subjects) == (2, 2, 6) and half.sd_draws == pytest.approx(0.001 / 2**0.5)
    assert half.low <= half.share <= half.high and half.share == pytest.approx(0.025 / 0.0495, rel=1e-6)
    assert half.dice == pytest.approx(0.825 + 0.0055 + 0.011), "levels, and the means of seeds, draws and cases"
    assert by_arm["worse", "8"].draws == 1, "the draw that is not done is left out"
    assert np.isnan(by_arm["worse", "8"].sd_draws)
    study.write(PLAN, "toy", list(by_arm.values()), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| half | 8 | 2 x 2 | 0.8415 | 0.0007 | 51% [" in text and "6 subjects of the test split" in text
    line = next(line for line in text.splitlines() if "primary=" in line)
    assert "primary=[self_training+synthetic,self_training,dice,mean foreground]" in shlex.split(line)
    rows = list(read_csv(tmp_path / "out" / "results.csv", study.COLUMNS, ""))
    assert [row["arm"] for row in rows].count("base") == 2
    assert (tmp_path / "out" / "shares.png").read_bytes()[:4] == b"\x89PNG"


def test_a_study_stops_at_the_first_command_that_fails(tmp_path, monkeypatch):
    ran = []

    def fake(words, **_):
        ran.append(words[2])
        return type("Done", (), {"returncode": 3 if words[2] == "medaug.generate" else 0})

    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study.subprocess, "run", fake)
    assert study.run(PLAN) == 3
    assert ran == ["medaug.train", "medaug.benchmark", "medaug.train", "medaug.generate"]
    assert len((tmp_path / "r" / "costs.csv").read_text().splitlines()) == 4
