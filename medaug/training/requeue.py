"""SLURM: a job whose time is nearly up goes back into the queue, and on its next turn goes on from its checkpoint.

It is the only handling of those signals: Lightning's, which writes a checkpoint of its own, is switched off.
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
    """The SLURM job that this process belongs to, as `scontrol` takes it; None outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def signals() -> tuple[signal.Signals, ...]:
    """What `sbatch --signal` sends before the time is up: USR1 by custom, USR2 by submitit; none outside of SLURM."""
    return (signal.SIGUSR1, signal.SIGUSR2) if job() else ()


def listen(first: bool) -> None:
    """Requeue at once and leave when a signal comes while there is nothing to save, that is before training begins.

    Args:
        first: this process speaks for all that train together.
    """

    def leave(number: int, frame: object) -> None:
        if first:
            requeue()
        sys.exit(128 + number)

    for number in signals():
        signal.signal(number, leave)


def requeue() -> None:
    """Put this process's job back into the queue; SLURM then ends it. Where that is refused, say so and go on."""
    for number in signals():
        signal.signal(number, signal.SIG_IGN)  # launchers pass a signal on that SLURM has sent to every process anyway
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
    """Lightning's view of processes that `srun` started, without its own requeuing; None for other processes."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if not job() or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return None
    return SLURMEnvironment(auto_requeue=False)
