"""Trainings of several processes, by torchrun and under SLURM, where one is requeued half way.

The cluster is real and small: its controller and two nodes are processes of this machine, without accounting.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits
from small_cohort import SCHEMA, write_case

from medaug.cohort.manifest import Manifest

STEPS = 24
WORDS = (
    "experiment=demo",
    "preset=smoke",
    "logger=csv",
    "data.phantom_subjects=5",
    "data.max_side=16",
    "data.val_fraction=0.2",
    "data.test_fraction=0.2",
    "trainer.precision=fp32",
    f"trainer.max_steps={STEPS}",
    f"trainer.validate_every={STEPS}",
    "trainer.checkpoint_every=4",
    "trainer.batch_size=1",
    "trainer.num_workers=1",  # SLURM signals it, too
    "trainer.accelerator=cpu",
    "trainer.strategy=ddp",
)
CLUSTER = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool_%n
SlurmctldPidFile={home}/controller.pid
SlurmdPidFile={home}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
KillWait=5
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""


def batch_script() -> str:
    """The scripts that the how-to shows for two nodes, on processors: torchrun at first, srun alone once requeued."""
    text = (Path(__file__).parents[2] / "docs" / "howto" / "slurm.md").read_text()
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) if "--nodes=2" in block]
    head = [line for line in blocks[0].splitlines() if line.startswith("#") and "gpus" not in line]
    turns = ["\n".join(line for line in block.splitlines() if not line.startswith("#")) for block in blocks]
    changes = {
        "srun python": f"srun {sys.executable}",
        "experiment=brats preset=multi_gpu": " ".join(WORDS),
        "--nproc-per-node=4": "--nproc-per-node=1",
        "$first:29500": f"127.0.0.1:{free_ports(1)[0]}",  # the names of the nodes mean nothing to this machine
        "trainer.devices=4": "",
    }
    torchrun, srun = turns
    body = f'export MASTER_ADDR=127.0.0.1\nif [ -z "$SLURM_RESTART_COUNT" ]; then\n{torchrun}\nelse\n{srun}\nfi\n'
    for shown, here in changes.items():
        assert shown in body
        body = body.replace(shown, here)
    return "\n".join(head) + "\n" + body


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment() -> dict[str, str]:
    """The environment of this process, as if no launcher had started it."""
    launchers = ("SLURM", "TORCHELASTIC", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(launchers)}
    return kept | {"OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


def contents(home: Path):
    return torch.load(home / "runs" / "demo" / "train" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """A folder in which two processes of torchrun have trained to the end, and their output."""
    home = tmp_path_factory.mktemp("torchrun")
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "medaug.train")
    command = [sys.executable, "-m", *launch, *WORDS, "trainer.devices=2"]
    done = subprocess.run(command, cwd=home, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (home / "said").write_text(done.stderr)
    return home


@pytest.mark.slow
def test_processes_of_torchrun_share_one_folder(uninterrupted):
    folder = uninterrupted / "runs" / "demo" / "train"
    assert [path.name for path in uninterrupted.iterdir() if path.is_dir()] == ["runs"]
    assert sorted(path.name for path in (uninterrupted / "runs").rglob("manifest.json")) == ["manifest.json"]
    assert len(list((folder / "csv").iterdir())) == 1, "one process logs"
    assert json.loads((folder / "finished.json").read_text())["step"] == STEPS
    assert contents(uninterrupted)["global_step"] == STEPS
    assert not list(uninterrupted.rglob(".tmp-*"))
    assert (uninterrupted / "said").read_text().count("the model is") == 1


@pytest.fixture
def cluster(tool, tmp_path) -> Iterator[dict[str, str]]:
    """A SLURM cluster of two nodes for one test; the environment in which its commands find it."""
    programs = {name: tool(name) for name in ("slurmctld", "slurmd", "sbatch", "scancel")}
    (tmp_path / "state").mkdir()
    path = tmp_path / "slurm.conf"
    path.write_text(CLUSTER.format(user=getpass.getuser(), ports=free_ports(3), home=tmp_path))
    found = environment() | {"SLURM_CONF": str(path)}
    log = (tmp_path / "cluster.log").open("w")
    commands = [
        [programs["slurmctld"], "-D", "-i"],
        *([programs["slurmd"], "-D", "-N", node] for node in ("one", "two")),
    ]
    started = [subprocess.Popen(command, env=found, stdout=log, stderr=log) for command in commands]
    try:
        idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        wait_for(
            lambda: subprocess.run(idle, env=found, capture_output=True, text=True).stdout.strip() == "2",
            lambda: (tmp_path / "cluster.log").read_text(),
            seconds=60,
        )
        yield found
    finally:
        subprocess.run([programs["scancel"], "--user", getpass.getuser()], env=found, timeout=30)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


@pytest.mark.slow
def test_a_requeued_job_on_two_nodes_ends_with_the_bits_of_an_uninterrupted_one(uninterrupted, cluster, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "job.sh").write_text(batch_script())

    def slurm(*command: str) -> str:
        return subprocess.run(command, cwd=home, env=cluster, capture_output=True, text=True, check=True).stdout

    job = slurm("sbatch", "--parsable", "job.sh").strip()
    log = home / f"medaug_{job}.log"

    def said() -> str:
        return log.read_text() if log.exists() else "nothing"

    folder = home / "runs" / "demo" / "train"
    wait_for((folder / "last.ckpt").exists, said)
    slurm("scancel", "--signal=USR1", job)  # what --signal sends when the time is nearly up
    wait_for(lambda: f"SLURM job {job}: back in the queue" in said(), said)
    stopped_at = contents(home)["global_step"]
    assert 4 <= stopped_at < STEPS
    assert f"stopped at step {stopped_at}" in said() and not (folder / "finished.json").exists()
    wait_for(lambda: not slurm("squeue", "--noheader"), said)
    assert (folder / "finished.json").exists(), said()
    assert f"going on from step {stopped_at} of {STEPS}" in said()
    assert said().count("back in the queue") == 1
    assert_same_bits(contents(uninterrupted), contents(home))
    assert sorted(path.name for path in home.iterdir()) == ["job.sh", log.name, "runs"]
    assert len(list((home / "runs").rglob("manifest.json"))) == 1


@pytest.mark.slow
def test_a_benchmark_runs_its_jobs_as_tasks_of_an_array(cluster, tmp_path):
    home = tmp_path / "home"
    cases = tuple(write_case(home, s, s, "test" if s in "tu" else "train", i) for i, s in enumerate("abtu"))
    Manifest("toy", "", ("T1",), SCHEMA, cases, str(home)).save(home / "cohort.json")
    words = ["experiment=cohort", "preset=smoke", f"cohort={home / 'cohort.json'}", "steps=1", "seeds=[0]"]
    words += ["segmenter.channels=[4,8]", "segmenter.batch_size=2", "segmenter.num_workers=0"]
    words += ["arms.names=[real,real+classical]", "workers=2", "slurm=[partition:all,timeout_min:5]"]
    command = [sys.executable, "-m", "medaug.benchmark", *words]
    done = subprocess.run(command, cwd=home, env=cluster, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"SLURM task \S+: done, 2 of 2", done.stderr)
    folder = home / "runs" / "cohort" / "benchmark"
    assert len(list(folder.glob("jobs/*/seed_0/scores.csv"))) == 2 and (folder / "finished.json").exists()


ALONE = (
    "import logging, os, signal, sys; from medaug.training import requeue; logging.basicConfig(level=20);"
    "requeue.listen(first=sys.argv[1] == '0'); os.kill(os.getpid(), signal.SIGUSR1); print('still here')"
)


def signalled(tmp_path: Path, rank: str, answer: str, **variables: str) -> tuple[int, str, str]:
    """Send SIGUSR1 to a process before it trains, with a `scontrol` that notes its words; status, stderr, the words."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n{answer}\n')
    scontrol.chmod(0o755)
    variables["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    command = [sys.executable, "-c", ALONE, rank]
    done = subprocess.run(command, env=environment() | variables, capture_output=True, text=True, timeout=60)
    assert "still here" not in done.stdout
    words = tmp_path / "words"
    return done.returncode, done.stderr, words.read_text().strip() if words.exists() else ""


def test_a_job_that_has_nothing_to_save_yet_is_requeued_at_once(tmp_path):
    status, said, words = signalled(tmp_path, "0", "exit 0", SLURM_JOB_ID="7")
    assert (status, words) == (128 + signal.SIGUSR1, "requeue 7")
    assert "SLURM job 7: back in the queue" in said


def test_a_task_of_an_array_is_requeued_alone(tmp_path):
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert signalled(tmp_path, "0", "exit 0", **array)[2] == "requeue 7_2"


def test_only_rank_0_requeues(tmp_path):
    assert signalled(tmp_path, "1", "exit 0", SLURM_JOB_ID="7")[::2] == (128 + signal.SIGUSR1, "")


def test_a_refused_requeuing_says_why_and_what_to_do(tmp_path):
    status, said, _ = signalled(tmp_path, "0", "echo 'Access denied' >&2; exit 1", SLURM_JOB_ID="7")
    assert status == 128 + signal.SIGUSR1
    assert "not requeued (Access denied); submit it again" in said


def test_signals_keep_their_meaning_outside_slurm(tmp_path):
    assert signalled(tmp_path, "0", "exit 0")[::2] == (-signal.SIGUSR1, "")
