"""The model's grid, chosen from the training scans' headers: voxel size and shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medaug.data.resampling import COARSE
from medaug.errors import UserError
from medaug.options import DataOptions

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

AGREEMENT = 0.02
"""Voxel sizes within this fraction of their median count as equal, because scanners round them."""


def check_intensity(options: DataOptions) -> None:
    """Refuse the intensity `window` if no window is given.

    Raises:
        UserError: names the key that is missing.
    """
    if options.intensity == "window" and options.window is None:
        raise UserError("data.intensity=window: no window is given", "set data.window, such as [-1000,1000]")


def fit_grid(
    scans: Sequence[tuple[Sequence[int], NDArray[Any]]], options: DataOptions, multiple: Shape
) -> tuple[Shape, Spacing | None]:
    """Choose the shape and voxel size of the model's grid (mm along R, A, S; None: every scan keeps its own).

    Scans are resampled if `spacing` is set, if (with `resample=auto`) their voxel sizes differ by more than 2 % from
    the median, and if a side has more than `max_side` voxels. The default voxel size is the median per axis. After
    nnU-Net (Isensee et al., Nature Methods 18, 2021), if the longest side of the median voxel is more than three times
    its shortest, that axis uses the 10th percentile instead, but no finer than the other axes.

    Args:
        scans: (shape, affine in mm) of every training scan, after the crop.
        options: `spacing`, `resample`, `max_side`, `shape`.
        multiple: if no shape is given, each side is rounded up to a multiple of this number; codec and network pad
            other sizes.
    """
    shapes = np.array([oriented_shape(shape, affine) for shape, affine in scans])
    spacings = np.array([oriented_spacing(affine) for _, affine in scans])
    usual = np.median(spacings, axis=0)
    target = options.spacing
    if target is None and options.resample == "auto" and np.abs(spacings / usual - 1).max() > AGREEMENT:
        target = usual.tolist()
        if usual.max() > COARSE * usual.min():
            axis = int(usual.argmax())
            target[axis] = float(max(np.percentile(spacings[:, axis], 10), np.delete(usual, axis).max()))
    if options.max_side is not None and _largest(shapes, spacings, target).max() > options.max_side:
        finest = np.array(usual if target is None else target)
        target = (finest * max(1.0, np.max(shapes * spacings / finest) / options.max_side)).tolist()
    shape = options.shape
    if shape is None:
        sides = _largest(shapes, spacings, target).tolist()
        shape = [math.ceil(side / divisor) * divisor for side, divisor in zip(sides, multiple, strict=True)]
    x, y, z = (int(side) for side in shape)
    return (x, y, z), None if target is None else (float(target[0]), float(target[1]), float(target[2]))


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float] | None) -> Shape:
    """The shape, rounded to whole voxels, that covers the same field of view with voxels of size `target`."""
    if target is not None:
        shape = [max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True)]
    x, y, z = (int(side) for side in shape)
    return x, y, z


def orientation_of(affine: NDArray[Any]) -> NDArray[np.int_]:
    """nibabel's (axis, flip) for each array axis: the world axis that it runs along, and 1 or -1."""
    return np.asarray(io_orientation(affine)).astype(int)


def oriented_shape(shape: Sequence[Any], affine: NDArray[Any]) -> list[Any]:
    """Reorder one number per array axis to R, A, S."""
    axes = orientation_of(affine)[:, 0].tolist()
    return [shape[axes.index(axis)] for axis in range(3)]


def oriented_spacing(affine: NDArray[Any]) -> Spacing:
    """Voxel size in mm along R, A, S."""
    x, y, z = oriented_shape([float(size) for size in nib.affines.voxel_sizes(affine)], affine)
    return x, y, z


def _largest(shapes: NDArray[Any], spacings: NDArray[Any], target: Sequence[float] | None) -> NDArray[Any]:
    return np.max([resampled_shape(n, s, target) for n, s in zip(shapes, spacings, strict=True)], axis=0)
