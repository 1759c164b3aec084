"""Damaged files of every kind: read, or refused in one line; never a traceback, a crash, a hang or more than 2 GiB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def fuzz(*words: str) -> str:
    """Run `fuzz_all.py` in a process without threads, which can be forked; returns what it printed."""
    env = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "fuzz_all.py"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_two_files_of_every_kind_and_a_dozen_stages(demo, tmp_path):
    assert "checkpoint" in fuzz("--count", "120", "--run", str(tmp_path))
    fuzz("--count", "12", "--seed", "1", "--run", str(demo.home), "--only", ":")


@pytest.mark.slow
def test_a_fault_is_counted_as_one(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from fuzz_runner import Kind, run_trial; from medaug.errors import UserError\n"
        "base = Path(sys.argv[2]); (base / 'a').mkdir(); (base / 'a' / 'x').write_bytes(b'sound' * 99)\n"
        "def take(path): pass\n"
        "def fail(path): raise ValueError\n"
        "def refuse(path): raise UserError(f'{path}: is bad; correct it')\n"
        "def mumble(path): raise UserError('bad')\n"
        "def hang(path):\n    while True: pass\n"
        "def eat(path): bytearray(3 << 30)\n"
        "def die(path): __import__('os').kill(__import__('os').getpid(), 11)\n"
        "for read in (take, refuse, fail, mumble, hang, eat, die):\n"
        "    print(run_trial(Kind('k', base / 'a', base / 'b', 'x', read, (), '', 1.0), 0).result)\n"
    )
    env = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-c", code, str(TESTS), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["read", "refused", "traceback", "message", "hang", "traceback", "crash"]
