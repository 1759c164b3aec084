"""Every stage is killed in the middle of its work and started again; run by hand, the scripts kill more often."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def kill(script: str, folder: Path, *words: str) -> str:
    """Run a killing script, check that it finds no fault, and return its output."""
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command = [sys.executable, str(TESTS / script), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_stage_that_is_killed_and_started_again_leaves_the_results_of_one_that_was_not(tmp_path):
    said = kill("kills.py", tmp_path, "--kills", "2")
    assert said.count(": 2 kills (1 by operation, alone, 1 by time, group)") == 8, said


@pytest.mark.slow
def test_two_processes_that_are_killed_make_every_screened_pair_once_and_whole(demo, tmp_path):
    shutil.copytree(demo.folder / "train", tmp_path / "home/runs/demo/train")
    said = kill("kills_of_ranks.py", tmp_path, str(tmp_path / "home"), "--num", "6", "--kills", "2")
    assert said.startswith("6 pairs") and "killed 2 times" in said and "0 faults" in said, said
