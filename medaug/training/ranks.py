"""Ranks that Lightning starts on this machine: reserves their port, and ends them together."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed import TCPStore

from medaug.processes import local_rank

PARENT = "MEDAUG_FIRST_RANK"  # process id of the rank that started the others
VARIABLES = (PARENT, "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")  # set for the ranks


@contextmanager
def prepared_ranks(trainer: Trainer) -> Iterator[None]:
    """Reserve the ranks' port in the process that will start them, and make the others end when that process ends.

    Lightning looks for a free port, closes it, starts the other ranks, and opens it again seconds later. Meanwhile
    another program may open it, and then the first rank fails. If the first rank ends for any reason, the others would
    wait for it for half an hour.

    What Lightning sets in the environment for the ranks is removed afterwards: a training that this process starts
    later would otherwise try to open the same port.
    """
    before = dict(os.environ)
    environment = trainer.strategy.cluster_environment if isinstance(trainer.strategy, ParallelStrategy) else None
    if isinstance(environment, LightningEnvironment):  # torchrun and SLURM end what they started
        if not environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            os.environ.setdefault("MASTER_PORT", str(_store().port))
        elif PARENT in os.environ and local_rank() > 0:
            threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    try:
        yield
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in VARIABLES if name in before})


@cache
def _store() -> TCPStore:
    """The server through which the ranks find each other, on a port that the system chooses.

    It stays open while this process lives, and the process group, which opens the same port in the same process, shares
    it (`multi_tenant`).
    """
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    sys.stderr.write("medaug train: the first process has ended, so this one ends as well\n")
    os._exit(1)  # the main thread may be waiting for the other process in a library
