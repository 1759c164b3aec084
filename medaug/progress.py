"""Progress of work that takes more than a few seconds: bars on standard error, lines in the log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

QUIET_SECONDS = 20.0
"""Without a terminal, the shortest time between two lines that say how far the work is."""


def duration(seconds: float) -> str:
    """A time in words, such as "12 s", "3 min" or "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate with a bar that shows count and time left; no bar if there is nothing to do or no terminal.

    Args:
        items: what to iterate over.
        description: text in front of the bar.
        total: number of items, needed if they have no length.
    """
    from rich.console import Console
    from rich.progress import track as rich_track

    if total is None and isinstance(items, Sized):
        total = len(items)
    console = Console(stderr=True)
    quiet = total == 0 or not console.is_terminal
    return rich_track(items, description, total=total, console=console, disable=quiet, transient=True)


def track_bytes(chunks: Iterable[bytes], description: str, total: int, done: int = 0) -> Iterator[bytes]:
    """Iterate with a bar that shows bytes, speed and the time left; no bar without a terminal.

    Args:
        chunks: what to iterate over.
        description: text in front of the bar.
        total: total number of bytes.
        done: bytes of the total that came before `chunks`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))


@contextlib.contextmanager
def counting(description: str, unit: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` are done, the throughput and the time left.

    Yields a function; calling it with n counts n more as done. On a terminal this is a bar. Elsewhere it is a line in
    the log whenever something was done, at most every `QUIET_SECONDS`, and a last line when everything is done.

    Args:
        description: what is being done, such as "generating".
        unit: what is counted, in the plural, such as "pairs".
        total: how many there will be in the end.
        done: how many of them exist already.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    begun, said, now_done = time.monotonic(), -QUIET_SECONDS, done
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done, speed="")

        def advance(number: int) -> None:
            nonlocal said, now_done
            now_done += number
            elapsed = max(time.monotonic() - begun, 1e-6)
            rate = (now_done - done) / elapsed
            speed = f"{rate:.3g} {unit}/s, {duration((total - now_done) / rate)} left" if rate else ""
            progress.update(task, completed=now_done, speed=speed)
            if not console.is_terminal and (elapsed - said >= QUIET_SECONDS or now_done == total):
                log.info("%s: %d of %d %s%s", description, now_done, total, unit, f", {speed}" if speed else "")
                said = elapsed

        yield advance
