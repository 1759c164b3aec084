"""The processes that work together on one run: ranks, devices, waiting, and the permissions of their files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medaug.errors import UserError
from medaug.locks import is_free

if TYPE_CHECKING:
    import torch


def process_rank() -> int:
    """The rank of this process among those that work together; 0 if it works alone."""
    return _number("RANK", "LOCAL_RANK", "SLURM_PROCID")


def process_count() -> int:
    """The number of processes that torchrun or srun started to work together; 1 if this one works alone."""
    # Not SLURM_NTASKS, which is also set in a batch script, although that is a single process.
    return int(os.environ.get("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS", "1"))


def local_rank() -> int:
    """The rank of this process among those on its machine; 0 if it works alone."""
    return _number("LOCAL_RANK", "SLURM_LOCALID")


def choose_device(accelerator: str = "auto") -> torch.device:
    """The GPU of this process, by its number on the machine; the CPU if there is no GPU or `accelerator` is "cpu"."""
    import torch

    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def _number(*variables: str) -> int:
    return int(next((os.environ[name] for name in variables if name in os.environ), "0"))


def wait_for_first(
    folder: Path, ready: Callable[[], bool], interval: float = 1.0, patience: float = 600.0, blind: float = 86400.0
) -> None:
    """Wait until rank 0 has done its part in a run folder that it locks.

    Args:
        folder: folder of the run; rank 0 holds its `.lock`.
        ready: whether the part is done.
        interval: seconds between two checks.
        patience: seconds to wait while no process holds the lock, because rank 0 may start later than this process.
        blind: seconds to wait on a file system without locks, where nothing shows whether rank 0 is still running.

    Raises:
        UserError: rank 0 has ended, or took too long.
    """
    begun = time.monotonic()
    end = begun + patience
    while not ready():
        free = is_free(folder / ".lock")
        if not free:
            end = begun + blind if free is None else time.monotonic() + patience
        if time.monotonic() > end and not ready():
            raise UserError(
                f"the first of {process_count()} processes has ended", "start all of them again", path=folder
            )
        time.sleep(interval)


def set_umask(umask: str | None) -> None:
    """Set the umask of this process and its workers; None: leave it unchanged.

    Raises:
        UserError: not an octal number, or one that takes permissions from the owner.
    """
    if umask is None:
        return
    if not re.fullmatch("0*[0-7]{1,3}", umask) or int(umask, 8) & 0o700:
        raise UserError(f"umask={umask}: not an octal number from 000 to 077", "with 077 only the owner can read files")
    os.umask(int(umask, 8))
