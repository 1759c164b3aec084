"""The script for GPU machines, run without a GPU, so that its mistakes cost no time on a GPU machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_gpu_script_runs_all_its_sections_on_a_processor(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", "--tiny"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert "errors" not in figures
    for variant in ("eager, channels first", "eager, channels last"):
        row = figures["variants"][variant]
        assert row["share_of_roofline"] > 0 and row["training"]["seconds"]["min"] > 0
    assert len(figures["sizes"]) == 2 and all(row["medaug"]["sampling"]["seconds"] for row in figures["sizes"].values())
    assert figures["host"]["noise"]["min"] > 0
    assert figures["tests"]["status"] == 0
    assert figures["cohort"]["generate"]["status"] == 0
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "| eager, channels last |" in table and "| 2 x 16 x 16 x 16 | plain |" in table
    assert len([path for path in (tmp_path / "out").iterdir() if path.is_file()]) <= 8


def test_without_a_gpu_the_script_says_how_to_try_it(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "gpu: torch sees no CUDA device here; try the script itself with --device cpu --tiny"
    )
