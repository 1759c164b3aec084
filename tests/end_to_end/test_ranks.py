"""Several processes, started as by torchrun or srun, make the same pairs as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medaug.cohort import provenance
from medaug.cohort.manifest import Manifest

ROOT = Path(__file__).parents[2]
NUM = 8
WORDS = ("experiment=demo", "preset=smoke", f"num={NUM}")

# Killed when the files of its second pair are written and their record is not.
KILLED = """
import os, signal, sys
from medaug.cohort import provenance
from medaug.launcher import run
from medaug.generate import main
append = provenance.append
def killed(path, record):
    if record["index"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, record)
provenance.append = killed
sys.exit(run("generate", main, sys.argv[1:]))
"""


def start(home: Path, rank: int, ranks: int, *words: str, program=("-m", "medaug.generate")) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, *WORDS, *words]
    return subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finding_lines(folder: Path) -> dict[tuple[int, int], dict[str, object]]:
    """The records without digests of files, because voxels may differ in the last digit."""
    return {k: {**record, "contents": sorted(record["contents"])} for k, record in provenance.read_all(folder).items()}


def volumes(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*Tr/*.nii.gz"))
    return {file.name: np.asanyarray(nib.load(file).dataobj).astype(float) for file in files}


@pytest.mark.slow
def test_killed_and_resumed_processes_make_the_pairs_of_one(demo, tmp_path):
    for name in ("one", "four"):
        for part in ("train", "cache"):
            shutil.copytree(demo.folder / part, tmp_path / name / "runs" / "demo" / part)
    one, four = tmp_path / "one", tmp_path / "four"
    alone = start(one, 0, 1, "batch_size=8")

    at_work = [start(four, rank, 4, "batch_size=1") for rank in (2, 1)]
    at_work += [start(four, 3, 4, "batch_size=1", program=("-c", KILLED)), start(four, 0, 4, "batch_size=1")]
    outputs = [process.communicate(timeout=300)[1] for process in (*at_work, alone)]
    assert [process.returncode for process in (*at_work, alone)] == [0, 0, -signal.SIGKILL, 0, 0], outputs
    folder, expected = four / "runs/demo/synthetic", one / "runs/demo/synthetic"
    assert sorted(index for index, _ in provenance.read_all(folder)) == list(range(7))
    assert not (folder / "finished.json").exists() and not (folder / "manifest.json").exists()
    assert "process 0 of 4 has made its pairs" in outputs[3]
    assert "repeat the command to make the missing pairs" in outputs[3]

    again = [start(four, rank, 2) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[1] for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    summaries = [json.loads((place / "finished.json").read_text()) for place in (folder, expected)]
    assert all(len(summary.pop("digest")) == 64 for summary in summaries) and summaries[0] == summaries[1]
    assert (folder / "contact_sheet.png").exists()
    assert finding_lines(folder) == finding_lines(expected)
    cases = [Manifest.load(place / "manifest.json").cases for place in (folder, expected)]
    assert cases[0] == cases[1] and len(cases[0]) == NUM
    made, wanted = volumes(folder), volumes(expected)
    assert made.keys() == wanted.keys() and len(made) > NUM
    for name in wanted:
        # An integer at half a step may be rounded either way.
        np.testing.assert_allclose(made[name], wanted[name], atol=1, err_msg=name)
        assert np.mean(made[name] != wanted[name]) < 0.02, name


@pytest.mark.slow
def test_a_stage_for_one_process_is_refused_to_several(tmp_path):
    program = ("-m", "medaug.audit")
    command = [sys.executable, *program, "experiment=demo"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "1", "WORLD_SIZE": "4"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.startswith("medaug audit: error: torchrun or srun started 4 processes")
