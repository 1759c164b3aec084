"""The processes that work together on one run, and the permissions of the files that they write."""

from __future__ import annotations

import os
import re

from medaug.errors import UserError


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


def _number(*variables: str) -> int:
    return int(next((os.environ[name] for name in variables if name in os.environ), "0"))


def set_umask(umask: str | None) -> None:
    """Keep permissions from every file that this process and its workers write; None: leave them as they are.

    Raises:
        UserError: not an octal number, or one that keeps the files from their owner.
    """
    if umask is None:
        return
    if not re.fullmatch("0*[0-7]{1,3}", umask) or int(umask, 8) & 0o700:
        raise UserError(f"umask={umask}: not an octal number from 000 to 077; 077 leaves files to their owner alone")
    os.umask(int(umask, 8))
