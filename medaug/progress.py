"""Progress on standard error, for whatever takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate with a bar that shows count and time left; silent where there is nothing to do or no terminal.

    Args:
        items: what to go through.
        description: stands before the bar.
        total: how many they are, where they do not know themselves.
    """
    from rich.console import Console
    from rich.progress import track as rich_track

    if total is None and isinstance(items, Sized):
        total = len(items)
    console = Console(stderr=True)
    quiet = total == 0 or not console.is_terminal
    return rich_track(items, description, total=total, console=console, disable=quiet, transient=True)
