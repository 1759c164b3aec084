"""A training that is asked to stop ends after the step in hand."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class StopSignals:
    """Listens for SIGINT (Ctrl-C) and SIGTERM; `received` then holds the number of the first one."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Give them back to whoever had them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            log.info("%s: saving after this step, then stopping", signal.Signals(number).name)
        self.received = number
