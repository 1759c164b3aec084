"""The bias field of magnetic resonance: estimated by N4, kept as a coarse lattice that divides and multiplies alike.

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
_LONGEST = 40  # voxels along the longest side while estimating: the field is smooth, and N4 is slow


def estimate_bias(volume: NDArray[Any], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Logarithm of the multiplicative field of a volume (X, Y, Z), on a lattice of at most 12 nodes per axis.

    The first and the last node of an axis lie on the first and the last voxel. The estimate is made on every n-th
    voxel, n such that no side keeps more than 40, and by one thread, so that it is the same everywhere.

    Args:
        volume: intensities of a magnitude image; the positive ones inside the body are judged.
        spacing: voxel size in mm.

    Returns:
        (A, B, C); zeros where there is too little foreground to judge.
    """
    import SimpleITK as sitk

    step = [math.ceil(side / _LONGEST) for side in volume.shape]
    some = tuple(slice(None, None, s) for s in step)
    shape = [min(_NODES, side) for side in volume.shape]
    judged = body_mask(volume)[some] & (volume[some] > 0)
    if judged.sum() < 100 or min(judged.shape) < 4:
        return np.zeros(shape)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume[some].T, np.float32))
    image.SetSpacing([float(s * size) for s, size in zip(step, spacing, strict=True)])
    mask = sitk.GetImageFromArray(np.ascontiguousarray(judged.T, np.uint8))
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
    """The field on a grid of `shape`, positive: a cubic spline through the nodes of the lattice, exponentiated."""
    zoom = [side / n for side, n in zip(shape, lattice.shape, strict=True)]
    return np.exp(ndimage.zoom(lattice, zoom, order=3, mode="mirror"))
