"""How sharp an image is, and the part of it where such things are measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CROP = 0.6
"""Share of each side about the centre that is looked at: nearer the edges, scans of different size are padded."""


def central_box(shape: Sequence[int], crop: float) -> tuple[slice, ...]:
    """The share `crop`, in (0, 1], of each side, but for as many voxels as are cut off at either end."""
    cut = [round(side * (1 - crop) / 2) for side in shape]
    return tuple(slice(n, side - n) for side, n in zip(shape, cut, strict=True))


def mean_absolute_gradient(volume: NDArray[np.number]) -> float:
    """Mean absolute difference between neighbouring voxels of (X, Y, Z), intensity units per voxel.

    Forward differences are averaged along each axis, then over the axes: two of them in a single slice. The value falls
    with blur and rises with noise and contrast, so compare volumes of one grid and one intensity scale only.

    Raises:
        ValueError: not three axes, or no neighbours along any.
    """
    if volume.ndim != 3 or max(volume.shape) < 2:
        raise ValueError(f"three axes with neighbours along at least one are needed, not {volume.shape}")
    values = volume.astype(np.float64)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in range(3) if volume.shape[axis] > 1]))
