"""The bias field of MR images: estimated by N4, and stored as a coarse lattice so that it can be removed and restored.

N4: Tustison et al., "N4ITK: improved N3 bias correction", IEEE TMI 29(6), 2010, through SimpleITK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medaug.imaging.body import body_mask

_NODES = 12  # per axis: N4's finest mesh has 8 intervals
_LONGEST = 40  # voxels along the longest side during estimation: the field is smooth, and N4 is slow


def estimate_bias(volume: NDArray[Any], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Estimate the logarithm of a volume's multiplicative field on a lattice of at most 12 nodes per axis.

    The first and last nodes of an axis lie on the first and last voxels. Only every n-th voxel is used, with n chosen
    so that no side has more than 40, and only one thread, so that the result does not depend on the machine.

    Args:
        volume: (X, Y, Z) intensities of a magnitude image; positive ones inside the body are used.
        spacing: voxel size in mm.

    Returns:
        (A, B, C); zeros if there is too little foreground for an estimate.
    """
    import SimpleITK as sitk

    step = [math.ceil(side / _LONGEST) for side in volume.shape]
    thinned = tuple(slice(None, None, s) for s in step)
    shape = [min(_NODES, side) for side in volume.shape]
    used = body_mask(volume)[thinned] & (volume[thinned] > 0)
    if used.sum() < 100 or min(used.shape) < 4:
        return np.zeros(shape)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume[thinned].T, np.float32))
    image.SetSpacing([float(s * size) for s, size in zip(step, spacing, strict=True)])
    mask = sitk.GetImageFromArray(np.ascontiguousarray(used.T, np.uint8))
    mask.CopyInformation(image)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.Execute(image, mask)
    log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).T.astype(np.float64)
    nodes = np.meshgrid(
        *[
            np.minimum(np.linspace(0, (side - 1) / s, n), kept - 1)
            for side, s, n, kept in zip(volume.shape, step, shape, log_field.shape, strict=True)
        ],
        indexing="ij",
    )
    return ndimage.map_coordinates(log_field, nodes, order=1)


def bias_field(lattice: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Evaluate the field on a grid of `shape`: the exponential of a cubic spline through the nodes, so positive."""
    zoom = [side / n for side, n in zip(shape, lattice.shape, strict=True)]
    return np.exp(ndimage.zoom(lattice, zoom, order=3, mode="mirror"))
