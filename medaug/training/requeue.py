"""SLURM: requeues a job whose time limit is near, so that it resumes from its checkpoint.

Lightning's own handling of those signals, which writes a separate checkpoint, is switched off.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import SLURMEnvironment

log = logging.getLogger(__name__)


def job() -> str | None:
    """The SLURM job of this process, in the form that `scontrol` expects; None outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def signals() -> tuple[signal.Signals, ...]:
    """The signals that announce the time limit: USR1 by convention, USR2 from submitit; none outside SLURM."""
    return (signal.SIGUSR1, signal.SIGUSR2) if job() else ()


def listen(first: bool) -> None:
    """Before training begins, when there is nothing to save: requeue and exit as soon as a signal comes.

    Args:
        first: whether this process is rank 0, which requeues the job.
    """

    def leave(number: int, frame: object) -> None:
        if first:
            requeue()
        sys.exit(128 + number)

    for number in signals():
        signal.signal(number, leave)


def requeue() -> None:
    """Requeue this process's job; SLURM then ends it. If SLURM refuses, log a warning and return."""
    for number in signals():
        signal.signal(number, signal.SIG_IGN)  # launchers forward a signal that SLURM has already sent to every process
    command = shutil.which("scontrol")
    why = "there is no scontrol on this machine"
    if command:
        done = subprocess.run([command, "requeue", str(job())], capture_output=True, text=True)
        why = " ".join((done.stderr or done.stdout).split()) or f"scontrol left with status {done.returncode}"
        if done.returncode == 0:
            log.info("SLURM job %s: back in the queue, it goes on from the last checkpoint", job())
            return
    log.warning("SLURM job %s: not requeued (%s); submit it again, it goes on from the last checkpoint", job(), why)


def environment() -> SLURMEnvironment | None:
    """Lightning's environment for processes started by `srun`, without its requeuing; None for other processes."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if not job() or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return None
    return SLURMEnvironment(auto_requeue=False)
