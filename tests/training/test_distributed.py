"""Training with weights split over two nodes of one process each: same result, and the same kind of checkpoint."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fit import BUDGET, contents, train

from medaug.training.checkpoint import load_model

pytestmark = pytest.mark.slow

ONE = replace(BUDGET, max_steps=2, validate_every=1, schedule="constant")

TRAININGS = """
import shutil
import sys
from dataclasses import replace
from pathlib import Path
import torch
from test_distributed import ONE
from test_fit import train

half = replace(ONE, strategy="fsdp", num_nodes=2, batch_size=1)
folder = Path(sys.argv[1])
train(folder, budget=half)
train(folder, budget=replace(half, max_steps=4))  # goes on from the checkpoint
torch.distributed.barrier()  # the other node has read the curve
if sys.argv[2] == "0":
    shutil.move(folder / "validation.csv", folder / "first.csv")
train(folder, budget=replace(half, max_steps=4))  # makes up for the last validation, as if killed before it
"""


def free_port() -> int:
    """A port that no other test opens before torchrun does: the system gives out none below 32768 by itself."""
    with socket.socket() as free:
        for port in range(20000 + os.getpid() % 10000, 32768):
            with contextlib.suppress(OSError):
                free.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port")


def test_fsdp_by_torchrun_trains_and_resumes_like_one_process(tmp_path):
    port = free_port()
    script = tmp_path / "script.py"
    script.write_text(TRAININGS)
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", ""), str(here.parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1"]
            + ["--master_addr=127.0.0.1", f"--master_port={port}", str(script), str(tmp_path / "split"), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        train(tmp_path / "one", budget=replace(ONE, max_steps=4))
        said = [node.communicate(timeout=400)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    if any(node.returncode for node in nodes):
        pytest.fail("\n".join(f"node {rank}:\n{text}" for rank, text in enumerate(said)), pytrace=False)
    one, split = contents(tmp_path / "one"), contents(tmp_path / "split")
    assert split["global_step"] == split["averaging_state"]["n_averaged"] == 4
    for part in ("state_dict", "current_model_state"):
        assert split[part].keys() == one[part].keys()
        for key, value in one[part].items():
            assert type(split[part][key]) is torch.Tensor
            torch.testing.assert_close(split[part][key], value, atol=1e-4, rtol=1e-3)
    names = ("one/validation.csv", "split/first.csv", "split/validation.csv")
    whole, first, last = ((tmp_path / name).read_text().split()[1:] for name in names)
    assert len(whole) == 4 and last == first[3:]
    for a, b in zip(whole, first, strict=True):
        assert list(map(float, b.split(","))) == pytest.approx(list(map(float, a.split(","))), rel=1e-5)
    load_model(tmp_path / "split" / "last.ckpt", torch.device("cpu"))
