"""The foreground of a scan: body in CT, MR and PET, brain in skull-stripped MR, everything in a crop without air."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

# Air is uniform: its spread is a small fraction of its contrast to the adjacent tissue. Measured: at most 0.16 in scans
# that contain air, at least 0.27 where tissue is split from darker tissue.
_UNIFORM_SPREAD = 0.2
# Split the dark part again if the voxels just above a threshold are at least this fraction of all voxels above it:
# then they are a tissue, such as muscle between air and fat. The rim of the body is a smaller fraction (at most 0.14);
# in PET the body next to a hot tumour is a larger one.
_TISSUE_SHARE = 0.2
_RIM_SHARE = 0.05  # the fraction needed while no air has been found (PET: little air, and a wide rim)
_MAX_SPLITS = 5
_COMPONENT_SHARE = 0.1  # keeps both legs, but not the table
_SMOOTHING = 0.7  # voxels
_NOISE = 5  # robust standard deviations above the air's median that still count as air
# Values are rare if they occur at most this often, relative to the most frequent value of tissue. Measured: at most
# 0.16 for CT inside its circle, 1 between soft tissue and bone.
_VALLEY = 0.5
_MASKED_SHARE = 0.5  # if one value covers this fraction of the faces, the scan was masked or padded with it
_PADDED_SHARE = 0.05  # if one value covers this fraction of the faces, it may be padding


class _Air(NamedTuple):
    """The air of a scan: its median and robust standard deviation, the threshold to the tissue, the tissue's median."""

    level: float
    spread: float
    split: float
    tissue: float

    @property
    def threshold(self) -> float:
        """The lowest value that counts as body: as dark as possible, but above the noise of the air."""
        return min(self.split, self.level + max(_NOISE * self.spread, 0.2 * (self.split - self.level)))

    def has_valley(self, values: NDArray[np.float32]) -> bool:
        """Whether values near the split are rare compared with the most frequent values above it."""
        width = 0.2 * (self.tissue - self.level)
        counts, _ = np.histogram(values, self.split + width * (np.arange(41) - 0.5))
        return bool(counts[0] <= _VALLEY * counts.max())


def body_mask(volume: NDArray[Any]) -> NDArray[np.bool_]:
    """Foreground of one volume (X, Y, Z) of finite values, in any units: MR (also skull-stripped), CT, PET.

    The threshold between air and tissue is searched from the bright end: Otsu's method (1979) splits the values, then
    splits the dark part again, as long as the part above the new threshold is a tissue. The lowest threshold with
    uniform values below it is used. It is moved towards the air, so that dark tissue (cerebrospinal fluid, the edge of
    the lung) is kept. Large components above it are kept and filled slice by slice, so that lungs that are cut off by
    the field of view count as body. If there is no such threshold, the volume is all tissue: every voxel is
    foreground, as in a constant volume.

    Padding (one value on many voxels of the faces) may be darker than the air, as outside the reconstruction circle of
    CT, and would then be mistaken for air. So the air is also searched without the padding. That result is used if the
    threshold found with the padding is darker than this air, and few values lie between this air and the tissue.

    Returns:
        (X, Y, Z) bool, never empty.
    """
    raw = np.asarray(volume, np.float32)
    border, share = _border_value(raw)
    padding = raw == border
    # A masked background has one value, not always the lowest: after a z-score the brain also has values below it.
    masked = share >= _MASKED_SHARE
    values = np.abs(raw - border) if masked else ndimage.gaussian_filter(raw, _SMOOTHING)
    air = _find_air(values)
    if air is None:
        return np.ones(raw.shape, bool)
    darkest = border + air.threshold if masked else air.threshold
    if share >= _PADDED_SHARE and (mask := _mask_within(raw, ~padding, darkest)) is not None:
        return _large_and_filled(mask)
    # The raw values must pass too: smoothing alone would add a rim.
    return _large_and_filled((values > air.threshold) & ((raw > air.threshold) | masked))


def _mask_within(raw: NDArray[np.float32], scanned: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_] | None:
    """Return the scanned voxels that are brighter than their air, or None if that air is darker than `threshold`."""
    if not scanned.any():
        return None
    values = ndimage.gaussian_filter(np.where(scanned, raw, raw[scanned].min()), _SMOOTHING)
    air = _find_air(values[scanned])
    if air is None or air.level < threshold or not air.has_valley(values[scanned]):
        return None
    mask = scanned & (values > air.threshold) & (raw > air.threshold)
    return mask if mask.any() else None


def _find_air(values: NDArray[np.float32]) -> _Air | None:
    """Find the air of a volume and the threshold to its tissue; None if there is no air."""
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        low, high = values.min(), values.max()
    part, above, found = np.clip(values, low, high).ravel(), 0, None
    for _ in range(_MAX_SPLITS):
        if not part.max() > part.min():
            break
        split = float(threshold_otsu(part))
        dark, tissue = part[part <= split], part[part > split]
        above += tissue.size
        if tissue.size < (_TISSUE_SHARE if found else _RIM_SHARE) * above:
            break
        level, bright = float(np.median(dark)), float(np.median(tissue))
        spread = 1.4826 * float(np.median(np.abs(dark - level)))
        if spread <= _UNIFORM_SPREAD * (bright - level):
            found = _Air(level, spread, split, bright)
        part = dark
    return found


def _large_and_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the large components of a mask without thin parts, filled slice by slice."""
    opened = ndimage.binary_opening(mask)
    labels, count = ndimage.label(opened if opened.any() else mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return _fill_slices((sizes >= _COMPONENT_SHARE * sizes.max())[labels] & (labels > 0))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the smallest box, [start, stop) per axis, around the True voxels of a mask (X, Y, Z) that is not empty."""
    ends = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((int(found[0]), int(found[-1]) + 1))
    x, y, z = ends
    return x, y, z


def _border_value(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the most frequent value on the six faces, and the fraction of their voxels that have it."""
    faces = np.concatenate([np.take(values, (0, -1), axis).ravel() for axis in range(3)])
    found, counts = np.unique(faces, return_counts=True)
    return float(found[counts.argmax()]), float(counts.max() / faces.size)


def _fill_slices(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill holes within slices along each axis; this also fills cavities that are enclosed in three dimensions."""
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
