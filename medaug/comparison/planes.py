"""A slice of each prediction of a job, kept for pictures: the one with the most foreground in the human label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.files import atomic_write

Planes = Mapping[str, NDArray[np.uint8]]
"""Case to the class indices (X, Y) of a slice."""


def save_planes(path: Path, planes: Planes) -> None:
    """Write the slices of a job's predictions.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(planes))


def load_planes(path: Path) -> Planes:
    """Read what `save_planes` wrote; {} if the file is damaged, or absent as in jobs of earlier versions."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError):
        return {}
