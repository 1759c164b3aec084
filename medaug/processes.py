"""The processes that work together on one run, and the permissions of the files that they write."""

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
    """Number of this process among those that work together; 0 where it works alone."""
    return _number("RANK", "LOCAL_RANK", "SLURM_PROCID")


def process_count() -> int:
    """How many processes torchrun or srun started to work together; 1 where this one works alone."""
    # SLURM_NTASKS would be wrong: a batch script has it too, and runs once.
    return int(os.environ.get("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS", "1"))


def local_rank() -> int:
    """Number of this process among those on its machine; 0 where it works alone."""
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
    """Wait until the first process has done its part in a folder that it locks.

    Args:
        folder: of the run; the first process holds its `.lock`.
        ready: whether the part is done.
        interval: seconds between two checks.
        patience: seconds to wait while no process holds the lock: the first process may start later than this one.
        blind: seconds to wait on a file system without locks, which do not show whether the first process still runs.

    Raises:
        UserError: the first process has ended, or takes longer than that.
    """
    begun = time.monotonic()
    end = begun + patience
    while not ready():
        free = is_free(folder / ".lock")
        if not free:
            end = begun + blind if free is None else time.monotonic() + patience
        if time.monotonic() > end and not ready():
            raise UserError(f"{folder}: the first of {process_count()} processes has ended", "start all of them again")
        time.sleep(interval)


def set_umask(umask: str | None) -> None:
    """Keep permissions from every file that this process and its workers write; None: leave them as they are.

    Raises:
        UserError: not an octal number, or one that keeps the files from their owner.
    """
    if umask is None:
        return
    if not re.fullmatch("0*[0-7]{1,3}", umask) or int(umask, 8) & 0o700:
        raise UserError(f"umask={umask}: not an octal number from 000 to 077", "077 leaves files to their owner alone")
    os.umask(int(umask, 8))
