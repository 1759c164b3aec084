"""A training that is asked to stop ends after the step in hand."""

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
        received: the number of the signal that came, else None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, *requeue.signals()):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Give them back to whoever had them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def leave(self, where: str, first: bool) -> NoReturn:
        """End the process with status 128 + the signal's number, its SLURM job back in the queue if the signal says so.

        Args:
            where: told to the user, such as "stopped at step 7".
            first: this process speaks for all that train together.
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
