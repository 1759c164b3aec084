"""Runs stages as a user does: one process each, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ingest_files import one_worker
from warm_python import run_module

from medaug.cohort.manifest import Manifest

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


def run_stage(home: Path, stage: str, *words: str, data: Path | None = None, **options) -> Done:
    """`python -m medaug.STAGE WORDS` in the folder `home`, with MEDAUG_DATA only if `data` is given."""
    env = {key: value for key, value in os.environ.items() if key not in {"MEDAUG_DATA", "COLUMNS"}}
    env |= {"PYTHONPATH": str(ROOT)} | ({"MEDAUG_DATA": str(data)} if data else {})
    if options:
        command = [sys.executable, "-m", f"medaug.{stage}", *words]
        return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=600, **options)
    return run_module(f"medaug.{stage}", one_worker(stage, words), home, env, timeout=600)


@dataclass(frozen=True)
class Loop:
    """A finished run of all stages of one experiment at preset=smoke."""

    experiment: str
    home: Path
    data: Path | None = None
    done: dict[str, Done] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.experiment

    def run(self, stage: str, *words: str) -> Done:
        words = (f"experiment={self.experiment}", "preset=smoke", *self.extra(stage), *words)
        return run_stage(self.home, stage, *words, data=self.data)

    def extra(self, stage: str) -> tuple[str, ...]:
        # One seed on 40 real test scans is enough to show that the numbers are consistent.
        return ("seeds=[0]",) if stage == "benchmark" and self.experiment == "hippocampus" else ()

    def run_all(self) -> Loop:
        for stage in ("train", "generate", "audit", "benchmark", "export"):
            self.done[stage] = self.run(stage, *(("out=exported",) if stage == "export" else ()))
            assert self.done[stage].returncode == 0, self.done[stage].stderr
        return self


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Loop:
    return Loop("demo", tmp_path_factory.mktemp("demo")).run_all()


@pytest.fixture(scope="session")
def hippocampus(tmp_path_factory, medaug_data) -> Loop:
    return Loop("hippocampus", tmp_path_factory.mktemp("hippocampus"), medaug_data).run_all()


@pytest.fixture(params=["demo", "hippocampus"])
def loop(request) -> Loop:
    return request.getfixturevalue(request.param)


@pytest.fixture
def stage(tmp_path) -> Callable[..., Done]:
    """Run a stage in the test's own folder, or in the one called `home`."""
    return lambda name, *words, home=tmp_path, **options: run_stage(home, name, *words, **options)


@pytest.fixture
def ingested(stage, tmp_path) -> Callable[..., Manifest]:
    """Ingest into `out`, check that this succeeds, and load the manifest."""

    def run(*words: str, out: str = "cohort.json") -> Manifest:
        done = stage("ingest", *words, f"out={out}")
        assert done.returncode == 0, done.stderr
        return Manifest.load(tmp_path / out)

    return run
