"""Damage thousands of files of every kind that medaug reads, and count the results.

    python tests/fuzz_all.py [--count 2000] [--seed 0] [--run FOLDER] [--only TEXT]

A run of all stages is made first (minutes), unless FOLDER holds one (with a folder `runs`), which is not changed.
The exit status is 1 where any file gave a traceback, a message that is not one line with the file's name, a crash, a
hang, or took more than 2 GiB; these are listed with the seed that makes them again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked safely
sys.path.insert(0, str(Path(__file__).parents[1]))

import SimpleITK as sitk
import torch
from fuzz_kinds import Corpus, dicom_kinds, table_kinds, volume_kinds
from fuzz_runner import Kind, Outcome, run_trial, table
from fuzz_runs import record_kinds, stage_kinds

STAGES = (
    ("train", "trainer.score_every=4"),
    ("generate",),
    ("audit",),
    ("benchmark",),
    ("export", "format=msd", "out=exported"),
)
STAGE_SHARE = 4  # one trial in this many is a whole stage, which takes seconds


def one_thread() -> None:
    """Keep this process, and those forked from it, to one thread."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def all_kinds(base: Path) -> list[Kind]:
    """Every kind that has its own reading function, with undamaged files below `base`."""
    corpus = Corpus(base)
    volume_kinds(corpus)
    dicom_kinds(corpus, shutil.which)
    table_kinds(corpus)
    record_kinds(corpus)
    return corpus.kinds


def make_run(home: Path) -> None:
    """All stages of the demo at preset=smoke, samples scored, in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for stage, *words in STAGES:
        command = [sys.executable, "-m", f"medaug.{stage}", "experiment=demo", "preset=smoke", *words]
        subprocess.run(command, cwd=home, env=env, check=True, capture_output=True)


def trials(kinds: list[Kind], stages: list[Kind], count: int, seed: int) -> Iterator[tuple[Kind, int]]:
    """The kinds in turn, with rising seeds; every few trials there is a stage."""
    files, runs = (
        itertools.product(itertools.islice(itertools.count(seed), count), group) for group in (kinds, stages)
    )
    for number in range(count):
        is_stage = stages and (not kinds or number % STAGE_SHARE == 0)
        made, kind = next(runs if is_stage else files)
        yield kind, made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    one_thread()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        base = Path(folder)
        kinds = [kind for kind in all_kinds(base) if arguments.only in kind.name]
        home = base / "run"
        if arguments.run is None:
            print("making a run of all stages", flush=True)
            make_run(home)
        template = (arguments.run or home).resolve()
        if arguments.run is None:
            template = Path(shutil.copytree(home, base / "made"))
        stages = [kind for kind in stage_kinds(template, home, "demo") if arguments.only in kind.name]
        for number, (kind, seed) in enumerate(trials(kinds, stages, arguments.count, arguments.seed), 1):
            outcome = run_trial(kind, seed)
            outcomes.append(outcome)
            if outcome.is_fault:
                print(
                    f"{outcome.result}: {outcome.kind}, seed {outcome.seed}, {outcome.damage}\n{outcome.text}\n",
                    flush=True,
                )
            if number % 100 == 0:
                print(f"{number} of {arguments.count}", flush=True)
    print(table(outcomes))
    return int(any(outcome.is_fault for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
