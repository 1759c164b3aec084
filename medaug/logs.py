"""Logging: what a stage says on standard error, and the same in a file beside its results."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medaug.errors import printable
from medaug.processes import process_rank

_OURS = ("medaug", "__main__")  # names of our loggers; a stage run by `python -m` is called __main__


class _Printable(logging.Formatter):
    """Escapes control characters in messages, so that text from files cannot control the terminal.

    Messages of medaug take one line each.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a message."""
        record.message = printable(record.message, "" if _is_ours(record) else "\n\t")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """The lines of a traceback."""
        return printable(super().formatException(ei), "\n\t")


class LogFile(logging.Handler):
    """Appends to `EXPERIMENT/logs/STAGE.log`, once the experiment has a folder.

    Lines from before are kept until then, so that a command that is refused leaves no folder behind. A log that cannot
    be written is given up, because it must not end the stage.
    """

    def __init__(self, experiment: Path, stage: str) -> None:
        super().__init__()
        self._experiment, self._path = experiment, experiment / "logs" / f"{stage}.log"
        self._waiting: list[str] | None = []
        self.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and those that waited."""
        if self._waiting is None:
            return
        self._waiting.append(self.format(record) + "\n")
        if self._experiment.is_dir():
            try:
                self._path.parent.mkdir(exist_ok=True)
                with self._path.open("a", encoding="utf-8", errors="replace") as file:
                    file.writelines(self._waiting)
                self._waiting = []
            except OSError:
                self._waiting = None


def set_up_logging(verbosity: int = 0) -> None:
    """Log to standard error: medaug's messages from INFO, those of libraries from WARNING.

    Args:
        verbosity: -1 leaves out INFO; 1 adds medaug's DEBUG and the libraries' INFO.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(_Printable("%(message)s"))
    else:
        handler = logging.StreamHandler()  # rich would wrap lines, and with them paths, at column 80
        handler.setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    ours, theirs = ((logging.WARNING, logging.WARNING), (logging.INFO, logging.WARNING), (logging.DEBUG, logging.INFO))[
        verbosity + 1
    ]
    if process_rank() != 0:
        ours = max(ours, logging.WARNING)
    # A filter, because libraries set the level of their own loggers when they are imported.
    handler.addFilter(lambda record: record.levelno >= (ours if _is_ours(record) else theirs))
    logging.basicConfig(level=theirs, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(min(ours, logging.INFO) if process_rank() == 0 else ours)
    logging.captureWarnings(True)
    # Users can do nothing about the warnings of libraries about their future versions.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}"


@contextlib.contextmanager
def log_file(experiment: Path | None, stage: str) -> Iterator[Callable[[str], None]]:
    """Log to a file of the experiment as well, from INFO on; yields a function that writes a line there alone.

    Args:
        experiment: folder of the experiment; None: no file.
        stage: name of the stage, and of the file.
    """
    if experiment is None or process_rank() != 0:
        yield lambda text: None
        return
    handler = LogFile(experiment, stage)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or _is_ours(record))
    logging.getLogger().addHandler(handler)
    try:
        yield lambda text: handler.emit(logging.LogRecord("medaug", logging.INFO, "", 0, text, None, None))
    finally:
        logging.getLogger().removeHandler(handler)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] in _OURS
