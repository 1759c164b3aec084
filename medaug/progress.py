"""Progress on standard error, for whatever takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate with a bar that shows count and time left; silent where there is nothing to do or no terminal."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    quiet = not items or not console.is_terminal
    return rich_track(items, description=description, console=console, disable=quiet, transient=True)
