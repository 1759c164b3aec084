"""Signal handlers that stop a training after the current step."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from medaug.training import requeue

log = logging.getLogger(__name__)


class StopSignals:
    """Listens for SIGINT (Ctrl-C), SIGTERM and, in a SLURM job, SIGUSR1 and SIGUSR2.

    Attributes:
        received: number of the first signal received; None: none so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM, *requeue.signals()):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def leave(self, where: str, first: bool) -> NoReturn:
        """Exit with status 128 + the signal's number; requeue the SLURM job first if the signal came from SLURM.

        Args:
            where: where training stopped, for the log, such as "stopped at step 7".
            first: whether this process is rank 0, which requeues the job.
        """
        assert self.received is not None
        log.info("%s; the same command goes on from there", where)
        if first and self.received in requeue.signals():
            requeue.requeue()
        sys.exit(128 + self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            log.info("%s: saving after this step, then stopping", signal.Signals(number).name)
        self.received = number
