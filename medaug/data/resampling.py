"""Resampling between grids with the same field of view: images by splines, labels without creating new values.

Voxel i of n covers [i / n, (i + 1) / n] of the field of view, so its centre maps to (i + 1/2) * new / old - 1/2; the
field of view does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

COARSE = 3.0
"""A voxel this many times longer than wide is a thick slice (nnU-Net's threshold)."""


def coarse_axis(*spacings: Sequence[float]) -> int | None:
    """The axis of thick slices: the longest axis of the first voxel size (mm) with a side ratio above `COARSE`."""
    for spacing in spacings:
        if max(spacing) > COARSE * min(spacing):
            return int(np.argmax(spacing))
    return None


def resample_image(volume: NDArray[Any], shape: Sequence[int], coarse: int | None = None) -> NDArray[Any]:
    """Cubic B-spline interpolation of a volume (X, Y, Z); axes that become coarser are smoothed first.

    Across thick slices a spline would ring, so interpolation there is linear. nnU-Net (Isensee et al., Nature Methods
    18, 2021) uses the nearest slice, but that would leave steps after the inverse. Values stay within the volume's
    range.

    Args:
        volume: floating point; it is returned unchanged if it already has this `shape`.
        shape: shape of the new grid, which has the same field of view.
        coarse: the axis of thick slices; None: none.
    """
    within = list(shape)
    if coarse is not None:
        within[coarse] = volume.shape[coarse]
    # First within the slices, then across them; `_resize` returns a volume unchanged if the shape does not change.
    return _resize(_resize(volume, within, 3), shape, 1)


def resample_label(label: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Resample class indices (X, Y, Z): each class is interpolated linearly by itself, and the largest share wins.

    No new value appears, and no class is favoured by its number. A connected component of a class other than 0 that
    would vanish, although it is at least half as large as a voxel of the new grid, keeps its volume: it gets the voxels
    that it fills most. It never gets the last voxel of another class.
    """
    if label.shape == tuple(shape):
        return label
    out = np.zeros(tuple(shape), np.uint8)
    largest = np.full(tuple(shape), -1.0, np.float32)
    classes = [int(value) for value in np.unique(label)]
    for value in classes:
        share = _resize((label == value).astype(np.float32), shape, 1)
        out[share > largest] = value
        np.maximum(largest, share, out=largest)
    for value in classes:
        if value:
            _keep_components(label == value, value, out)
    return out


def _resize(volume: NDArray[Any], shape: Sequence[int], order: int) -> NDArray[Any]:
    if volume.shape == tuple(shape):
        return volume
    coarser = any(new < old for new, old in zip(shape, volume.shape, strict=True))
    resized = resize(volume, tuple(shape), order, mode="edge", anti_aliasing=coarser, preserve_range=True, clip=True)
    return np.asarray(resized, volume.dtype)


def _keep_components(mask: NDArray[np.bool_], value: int, out: NDArray[np.uint8]) -> None:
    """Restore to `out` the components of one class that have no voxel in it."""
    voxel = mask.size / out.size  # a voxel of the new grid, in voxels of the old
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        where = np.argwhere(labels[box] == number) + [side.start for side in box]
        if len(where) < voxel / 2:
            continue
        target = ((where + 0.5) * out.shape / mask.shape).astype(int)
        flat, counts = np.unique(np.ravel_multi_index(tuple(target.T), out.shape), return_counts=True)
        if np.any(out.flat[flat] == value):
            continue
        for index in flat[np.argsort(-counts, kind="stable")][: max(1, round(len(where) / voxel))]:
            current = out.flat[index]
            if current == 0 or np.count_nonzero(out == current) > 1:
                out.flat[index] = value
