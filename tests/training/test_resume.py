"""Interrupted and uninterrupted runs end with the same bits; a finished run is left alone."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits
from warm_python import Running

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 12
SMALL = (
    "experiment=demo",
    "preset=smoke",
    "logger=csv",
    "data.phantom_subjects=5",
    "data.max_side=16",
    "data.val_fraction=0.2",
    "data.test_fraction=0.2",
    "trainer.precision=fp32",
    "trainer.batch_size=1",
    "trainer.accumulate=2",
    "trainer.num_workers=1",
    "trainer.validate_every=5",
    "trainer.checkpoint_every=4",
)


DIES_WHILE_SAVING = """
import os, runpy, signal, sys
from lightning.pytorch.strategies import Strategy

save, saved = Strategy.save_checkpoint, []

def die(self, contents, path, storage_options=None):
    save(self, contents, path, storage_options)
    saved.append(path)
    if len(saved) == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

Strategy.save_checkpoint = die
runpy.run_module("medaug.train", run_name="__main__")
"""


def start(runs: Path, *words: str, code: str | None = None, **variables: str) -> Running | subprocess.Popen[str]:
    """The stage as a process of its own, on one thread, so that sums are taken in one order.

    It starts with its libraries imported, unless `code` or variables are given.
    """
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "LOCAL_RANK", "SLURM_PROCID"}}
    environment |= {"OMP_NUM_THREADS": "1"} | variables
    given = dict(word.split("=", 1) for word in (*SMALL, f"trainer.max_steps={STEPS}", *words))  # the last one counts
    arguments = [f"runs={runs}", *(f"{key}={value}" for key, value in given.items())]
    if code is None and not variables and "trainer=ddp" not in words:
        return Running("medaug.train", arguments, ROOT, environment | {"PYTHONPATH": str(ROOT)})
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "medaug.train"]), *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def train(runs: Path, *words: str, status: int = 0) -> str:
    """Run to the end and return what it said."""
    process = start(runs, *words)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def checkpoint(runs: Path) -> Path:
    return runs / "demo" / "train" / "last.ckpt"


def contents(runs: Path):
    return torch.load(checkpoint(runs), weights_only=True)


def at_step_four(process: Running | subprocess.Popen[str], runs: Path) -> None:
    """Wait for the first checkpoint; the run has eight more steps to go."""
    while not checkpoint(runs).exists():
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    train(runs)
    return runs


def test_training_changes_weights_and_their_average(uninterrupted):
    found = contents(uninterrupted)
    assert found["global_step"] == STEPS
    current, average = found["current_model_state"], found["state_dict"]
    moved = [key for key in current if not torch.equal(current[key], average[key])]
    assert len(moved) > 0.9 * sum(1 for key in current if "codec" not in key)
    assert not any("codec" in key for key in moved), "measured statistics are not averaged"


def test_a_killed_run_ends_with_the_same_bits(uninterrupted, tmp_path):
    process = start(tmp_path)
    at_step_four(process, tmp_path)
    process.kill()
    process.communicate()
    killed_at = contents(tmp_path)["global_step"]
    assert 4 <= killed_at < STEPS
    said = train(tmp_path)
    assert f"going on from step {killed_at} of {STEPS}" in said
    assert_same_bits(contents(uninterrupted), contents(tmp_path))


def test_a_run_killed_while_it_saves_ends_with_the_same_bits(uninterrupted, tmp_path):
    process = start(tmp_path, code=DIES_WHILE_SAVING)
    assert process.wait(timeout=300) == -signal.SIGKILL
    folder = checkpoint(tmp_path).parent
    assert contents(tmp_path)["global_step"] == 4
    assert len(list(folder.glob(".tmp-*"))) == 1, "half of step 8"
    assert "going on from step 4" in train(tmp_path)
    assert_same_bits(contents(uninterrupted), contents(tmp_path))
    assert list(folder.glob(".tmp-*")) == []
    curve = (folder / "validation.csv").read_text()
    assert curve == (checkpoint(uninterrupted).parent / "validation.csv").read_text()
    assert [line.split(",")[0] for line in curve.splitlines()] == ["step", "5", "10"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_saves_and_stops_and_the_run_can_resume(uninterrupted, tmp_path, number, send):
    """Sent to the training alone or, as Ctrl-C and SLURM do, to the process that loads its data as well."""
    process = start(tmp_path)
    at_step_four(process, tmp_path)
    send(process.pid, number)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number, said
    stopped_at = contents(tmp_path)["global_step"]
    assert 4 <= stopped_at < STEPS
    assert f"stopped at step {stopped_at}" in said and "Traceback" not in said
    assert not (checkpoint(tmp_path).parent / "finished.json").exists()
    train(tmp_path)
    assert_same_bits(contents(uninterrupted), contents(tmp_path))


def test_a_finished_run_is_left_alone_and_can_grow(uninterrupted, tmp_path):
    before = checkpoint(uninterrupted).read_bytes(), checkpoint(uninterrupted).stat().st_mtime_ns
    assert "finished already" in train(uninterrupted)
    assert (checkpoint(uninterrupted).read_bytes(), checkpoint(uninterrupted).stat().st_mtime_ns) == before
    refused = train(uninterrupted, "trainer.max_steps=16", status=2)
    _, about_smoke, line = refused.splitlines()
    assert "preset=smoke" in about_smoke and "trainer.max_steps: 12 -> 16" in line

    train(tmp_path, "trainer.max_steps=4")
    assert contents(tmp_path)["global_step"] == 4
    assert "going on from step 4 of 9" in train(tmp_path, "trainer.max_steps=9", "resume=true")
    grown = contents(tmp_path)
    assert grown["global_step"] == 9
    assert grown["optimizer_states"][0]["state"][0]["step"] == 9
    assert grown["averaging_state"]["n_averaged"] == 9
    logs = sorted((checkpoint(tmp_path).parent / "csv").rglob("metrics.csv"))
    assert len(logs) == 2, "going on does not delete the former curve"


def test_interrupted_before_training_starts(tmp_path):
    process = start(tmp_path, "data.phantom_subjects=60")
    phantoms = tmp_path / "demo" / "phantom"
    while not list(phantoms.rglob("*.nii.gz")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not checkpoint(tmp_path).exists()


def logged(runs: Path, key: str) -> list[float]:
    """A curve of the CSV logger."""
    with (checkpoint(runs).parent / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    words = ("trainer.max_steps=4", "trainer.validate_every=2", "trainer.accumulate=1")
    train(tmp_path / "one", *words, "trainer.batch_size=2")
    train(tmp_path / "two", *words, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert two["global_step"] == 4
    for part in ("state_dict", "current_model_state"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, atol=2e-4, rtol=1e-2)
    for key in ("train/loss", "val/loss", "val/loss_t0.5"):
        curves = [logged(tmp_path / name, key) for name in ("one", "two")]
        assert len(curves[0]) == (4 if key == "train/loss" else 2)
        assert len(set(curves[0])) > 1
        assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_a_rank_ends_when_the_first_one_cannot_start(tmp_path):
    with socket.socket() as another_program:
        another_program.bind(("127.0.0.1", 0))
        another_program.listen()
        port = another_program.getsockname()[1]
        process = start(tmp_path, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", MASTER_PORT=str(port))
        said = process.communicate(timeout=120)[1]  # until all processes that write there have ended
    assert process.returncode == 2, said
    assert f"port: {port}" in said and "set MASTER_PORT" in said and "Traceback" not in said
