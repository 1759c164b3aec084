"""Resampling between grids that fill one field of view: images by splines, labels without a value that was not there.

Voxel i of a side of n voxels covers [i / n, (i + 1) / n] of the field of view, so centres map by
(i + 1/2) * new / old - 1/2; the field of view itself does not move.
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
    """The axis of thick slices: the longest of the first voxel size (mm) whose sides differ by more than `COARSE`."""
    for spacing in spacings:
        if max(spacing) > COARSE * min(spacing):
            return int(np.argmax(spacing))
    return None


def resample_image(volume: NDArray[Any], shape: Sequence[int], coarse: int | None = None) -> NDArray[Any]:
    """Cubic B-spline interpolation of a volume (X, Y, Z), smoothed first along the axes that it coarsens.

    Across thick slices a spline rings, and a structure in one slice says little of the next. There interpolation is
    linear: nnU-Net (Isensee et al., Nature Methods 18, 2021) takes the nearest slice, which the way back would show
    as steps. Values stay within the volume's range.

    Args:
        volume: floating point; where `shape` is its own, it is returned untouched.
        shape: of the new grid, which fills the same field of view.
        coarse: the axis of thick slices; None: there is none.
    """
    within = list(shape)
    if coarse is not None:
        within[coarse] = volume.shape[coarse]
    # Once for the planes, once across them; either does nothing where nothing changes.
    return _resize(_resize(volume, within, 3), shape, 1)


def resample_label(label: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Class indices (X, Y, Z) on another grid: every class by itself, linearly, and the largest share wins.

    No value appears that was not there, and no class is favoured by its number. A connected component of a class other
    than 0 that would vanish, though it is at least half as large as a voxel of the new grid, keeps its volume: the
    voxels of which it fills most are its own. It never takes the last voxel of another class.
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
    """Give back to `out` the components of one class that have no voxel in it."""
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
            taken = out.flat[index]
            if taken == 0 or np.count_nonzero(out == taken) > 1:
                out.flat[index] = value
