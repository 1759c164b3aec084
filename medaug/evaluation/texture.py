"""Sharpness of an image, and the central part of a volume in which texture is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CROP = 0.6
"""Share of each side, about the centre, that is measured, because scans of different size are padded at the edges."""


def central_box(shape: Sequence[int], crop: float) -> tuple[slice, ...]:
    """Slices of the central part of a volume: about the share `crop`, in (0, 1], of each side.

    The same number of voxels is cut off at both ends of a side.
    """
    cut = [round(side * (1 - crop) / 2) for side in shape]
    return tuple(slice(n, side - n) for side, n in zip(shape, cut, strict=True))


def mean_absolute_gradient(volume: NDArray[np.number]) -> float:
    """Mean absolute difference between neighbouring voxels of (X, Y, Z), in intensity units per voxel.

    Forward differences are averaged along each axis, then over the axes that are longer than one voxel. The value
    decreases with blur and increases with noise and contrast, so compare only volumes with the same grid and intensity
    scale.

    Raises:
        ValueError: there are not three axes, or all have length 1.
    """
    if volume.ndim != 3 or max(volume.shape) < 2:
        raise ValueError(f"three axes with neighbours along at least one are needed, not {volume.shape}")
    values = volume.astype(np.float64)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in range(3) if volume.shape[axis] > 1]))
