"""Every stage, killed in the middle of its work and started again; `tests/kills.py` by itself kills more often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_stage_that_is_killed_and_started_again_leaves_the_results_of_one_that_was_not(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(TESTS / "kills.py"), "--kills", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 2 kills (1 by operation, alone, 1 by time, group)") == 8, done.stdout
