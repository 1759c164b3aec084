"""How sharp an image is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_absolute_gradient(volume: NDArray[np.number]) -> float:
    """Mean absolute difference between neighbouring voxels of (X, Y, Z), intensity units per voxel.

    Forward differences are averaged along each axis, then over the three axes. The value falls with blur and
    rises with noise and contrast, so compare volumes of one grid and one intensity scale only.

    Raises:
        ValueError: not three axes of at least two voxels.
    """
    if volume.ndim != 3 or min(volume.shape) < 2:
        raise ValueError(f"three axes of at least two voxels are needed, not {volume.shape}")
    values = volume.astype(np.float64)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in range(3)]))
