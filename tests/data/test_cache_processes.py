"""Processes that share the cache: they divide the work, and a killed one leaves nothing wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from six_scans import NAMES, PREPROCESSING, entries, same

from medaug.data.cases import load_cases

RANK = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from medaug.cohort.manifest import Manifest
from medaug.data import cases as module
from medaug.data.preprocessing import Preprocessing

root, cache, delay, hang = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
read, save, done = module.read_case, np.save, []

def slow(manifest, case):
    done.append(case.name)
    time.sleep(delay)
    return read(manifest, case)

def hanging(path, array):
    save(path, array)
    if len(done) == 3 and hang in Path(path).name:
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        print("hanging", flush=True)
        time.sleep(60)

module.read_case = slow
if hang:
    np.save = hanging
print("ready", flush=True)
sys.stdin.readline()
manifest = Manifest.load(root / "manifest.json")
loaded = module.load_cases(manifest, manifest.cases, Preprocessing((8, 8, 8), None, (0.0, 100.0)), cache)
print(json.dumps([done, [float(case.image.astype(float).sum()) for case in loaded]]), flush=True)
"""


def start_rank(manifest, cache, delay=0.0, hang=""):
    manifest.save(Path(manifest.root, "manifest.json"))
    words = [sys.executable, "-c", RANK, manifest.root, str(cache), str(delay), hang]
    rank = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert rank.stdout.readline() == "ready\n"
    return rank


def go(rank):
    rank.stdin.write("\n")
    rank.stdin.flush()


@pytest.mark.slow
def test_two_ranks_share_the_work(manifest, tmp_path):
    cache = tmp_path / "cache"
    ranks = [start_rank(manifest, cache, delay=0.2) for _ in range(2)]
    for rank in ranks:
        go(rank)
    (one, sums), (two, others) = (json.loads(rank.communicate(timeout=60)[0]) for rank in ranks)
    assert sorted(one + two) == list(NAMES), "each case once"
    assert one and two
    expected = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "alone")
    assert sums == others == [float(case.image.astype(float).sum()) for case in expected]
    assert same(expected, load_cases(manifest, manifest.cases, PREPROCESSING, cache))
    assert len(entries(cache)) == len(NAMES) and not list(cache.glob("*.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("hang", [".image.npy", ".label.npy"])
def test_a_killed_process_leaves_no_wrong_entry(manifest, tmp_path, reads, hang):
    cache = tmp_path / "cache"
    rank = start_rank(manifest, cache, hang=hang)
    go(rank)
    assert rank.stdout.readline() == "hanging\n"
    rank.send_signal(signal.SIGKILL)
    rank.communicate()
    assert len(entries(cache)) == 2 and len(list(cache.glob(".tmp-*"))) == 1
    started = time.monotonic()
    found = load_cases(manifest, manifest.cases, PREPROCESSING, cache)
    assert time.monotonic() - started < 20, "no stale lock"
    assert reads == list(NAMES)[2:]
    assert same(found, load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "alone"))
    assert not list(cache.glob(".tmp-*")) and len(entries(cache)) == len(NAMES)


@pytest.mark.slow
def test_a_waiting_process_takes_over_from_a_killed_one(manifest, tmp_path):
    cache = tmp_path / "cache"
    killed = start_rank(manifest, cache, hang=".image.npy")
    go(killed)
    assert killed.stdout.readline() == "hanging\n"
    waiting = start_rank(manifest, cache)
    go(waiting)
    until = time.monotonic() + 30
    while len(entries(cache)) < len(NAMES) - 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(entries(cache)) == len(NAMES) - 1 and waiting.poll() is None, "all but the held one"
    killed.send_signal(signal.SIGKILL)
    done, _ = json.loads(waiting.communicate(timeout=60)[0])
    assert done == ["d", "e", "f", "c"]
    killed.communicate()
    assert len(entries(cache)) == len(NAMES)
