"""Progress bars on standard error, for work that takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


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
