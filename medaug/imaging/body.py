"""The foreground of a scan: the body in CT, the head or the brain in MR, everything in a crop that holds no air."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

# Air is even: its spread is a small share of its contrast to tissue. The darker half of tissue alone has about 0.4.
_EVEN = 0.2
_COMPONENT_SHARE = 0.1  # both legs, but not the table


def body_mask(volume: NDArray[Any]) -> NDArray[np.bool_]:
    """Foreground of one volume (X, Y, Z) of finite values, in any units: skull-stripped or full-head MR, CT in HU.

    Otsu's threshold (1979) splits dark from bright. The dark part is air where it is even, and then the threshold
    goes down towards the air, so that dark tissue (cerebrospinal fluid, lung's edge) stays. The large components are
    kept and filled slice by slice, so that lungs cut by the field of view count as body. Where the dark part is not
    even, the volume is tissue throughout: every voxel is foreground, as in a constant volume.

    Returns:
        (X, Y, Z) bool, never empty.
    """
    raw = np.asarray(volume, np.float32)
    everything = np.ones(raw.shape, bool)
    border, exact = _border_value(raw)
    # Masked backgrounds have one value, not always the lowest: after a z-score the brain lies on both sides of it.
    raw = np.abs(raw - border) if exact else raw
    values = raw if exact else ndimage.gaussian_filter(raw, 0.7)
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        low, high = values.min(), values.max()
    if not high > low:
        return everything
    threshold = float(threshold_otsu(np.clip(values, low, high).ravel()))
    dark, bright = values[values <= threshold], values[values > threshold]
    air, tissue = float(np.median(dark)), float(np.median(bright))
    spread = 1.4826 * float(np.median(np.abs(dark - air)))
    if spread > _EVEN * (tissue - air):
        return everything
    # Never nearer to the air than a fifth of the way: CT is padded with one value where its air is another.
    threshold = min(threshold, air + max(5 * spread, 0.2 * (threshold - air)))
    mask = (values > threshold) & (raw > threshold)  # smoothing alone would add a rim
    opened = ndimage.binary_opening(mask)
    labels, count = ndimage.label(opened if opened.any() else mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return _fill_slices((sizes >= _COMPONENT_SHARE * sizes.max())[labels] & (labels > 0))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The smallest box [start, stop) per axis that holds every True voxel of a mask (X, Y, Z) that has one."""
    ends = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((int(found[0]), int(found[-1]) + 1))
    x, y, z = ends
    return x, y, z


def _border_value(values: NDArray[np.float32]) -> tuple[float, bool]:
    """The commonest value on the six faces, and whether at least half of their voxels have it."""
    faces = np.concatenate([np.take(values, (0, -1), axis).ravel() for axis in range(3)])
    found, counts = np.unique(faces, return_counts=True)
    return float(found[counts.argmax()]), bool(counts.max() >= 0.5 * faces.size)


def _fill_slices(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what is enclosed within a slice across any axis; a cavity enclosed in three dimensions is among it."""
    filled = mask.copy()
    for axis in range(3):
        within = np.expand_dims(ndimage.generate_binary_structure(2, 1), axis)
        structure = np.concatenate([np.zeros_like(within), within, np.zeros_like(within)], axis)
        labels, count = ndimage.label(~mask, structure)
        outside = np.zeros(count + 1, bool)
        outside[0] = True  # the mask itself
        for other in {0, 1, 2} - {axis}:
            outside[np.take(labels, (0, -1), other)] = True
        filled |= ~outside[labels]
    return filled
