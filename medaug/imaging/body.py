"""The foreground of a scan: the body in CT, MR and PET, the brain in stripped MR, all of a crop that holds no air."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

# Air is even: its spread is a small share of its contrast to the tissue next to it. Measured: at most 0.16 in scans
# that hold air, at least 0.27 where tissue is split from darker tissue.
_EVEN = 0.2
# Look further down where the voxels just above a threshold are this share of all above it: then they are a tissue, such
# as muscle between air and fat. The rim of the body is less (0.14 at most), the body beside a hot tumour in PET more.
_TISSUE_SHARE = 0.2
_RIM_SHARE = 0.05  # enough to look further while no air has been found: little of it, with a wide rim (PET)
_MAX_SPLITS = 5
_COMPONENT_SHARE = 0.1  # both legs, but not the table
_SMOOTHING = 0.7  # voxels
_NOISE = 5  # robust standard deviations of the air that are still air
_VALLEY = 0.5  # of the frequency of tissue. Measured: at most 0.16 for CT in its circle, 1 from soft tissue to bone
_MASKED_SHARE = 0.5  # of the faces: the scan was masked or padded with one value
_PADDED_SHARE = 0.05  # of the faces: there may be padding


class _Air(NamedTuple):
    """The air of a scan: its median and robust standard deviation, the split from the tissue, the tissue's median."""

    level: float
    spread: float
    split: float
    tissue: float

    @property
    def threshold(self) -> float:
        """Where the body begins: as dark as can be, but above the noise and other values of air."""
        return min(self.split, self.level + max(_NOISE * self.spread, 0.2 * (self.split - self.level)))

    def has_valley(self, values: NDArray[np.float32]) -> bool:
        """Whether the scan's values are rare about the split, compared with the most frequent ones above it."""
        width = 0.2 * (self.tissue - self.level)
        counts, _ = np.histogram(values, self.split + width * (np.arange(41) - 0.5))
        return bool(counts[0] <= _VALLEY * counts.max())


def body_mask(volume: NDArray[Any]) -> NDArray[np.bool_]:
    """Foreground of one volume (X, Y, Z) of finite values, in any units: MR (also skull-stripped), CT, PET.

    The border between air and tissue is searched from the bright end: Otsu's threshold (1979) splits the values, then
    the dark part again, as long as what is split off is a tissue. The lowest threshold with even values below it
    counts, and is moved towards the air, so that dark tissue (cerebrospinal fluid, the edge of the lung) stays. The
    large components above it are kept and filled slice by slice, so that lungs cut by the field of view count as body.
    Without such a threshold the volume is tissue throughout: every voxel is foreground, as in a constant volume.

    Padding, one value on many voxels of the faces, may lie below the air (CT outside the circle of reconstruction) and
    would then be taken for it. So the air is searched without the padding as well. What that finds counts if the
    threshold found with the padding is darker than this air, and few values lie between this air and the tissue.

    Returns:
        (X, Y, Z) bool, never empty.
    """
    raw = np.asarray(volume, np.float32)
    border, share = _border_value(raw)
    padding = raw == border
    # Masked backgrounds have one value, not always the lowest: after a z-score the brain lies on both sides of it.
    masked = share >= _MASKED_SHARE
    values = np.abs(raw - border) if masked else ndimage.gaussian_filter(raw, _SMOOTHING)
    air = _find_air(values)
    if air is None:
        return np.ones(raw.shape, bool)
    darkest = border + air.threshold if masked else air.threshold
    if share >= _PADDED_SHARE and (mask := _mask_within(raw, ~padding, darkest)) is not None:
        return _large_and_filled(mask)
    # Smoothing alone would add a rim.
    return _large_and_filled((values > air.threshold) & ((raw > air.threshold) | masked))


def _mask_within(raw: NDArray[np.float32], scanned: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_] | None:
    """What is brighter than the air among scanned voxels, None where their air does not lie above the threshold."""
    if not scanned.any():
        return None
    values = ndimage.gaussian_filter(np.where(scanned, raw, raw[scanned].min()), _SMOOTHING)
    air = _find_air(values[scanned])
    if air is None or air.level < threshold or not air.has_valley(values[scanned]):
        return None
    mask = scanned & (values > air.threshold) & (raw > air.threshold)
    return mask if mask.any() else None


def _find_air(values: NDArray[np.float32]) -> _Air | None:
    """What separates the air of a volume from its tissue, None where there is no air."""
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
        if spread <= _EVEN * (bright - level):
            found = _Air(level, spread, split, bright)
        part = dark
    return found


def _large_and_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The large components of a mask, without its thin parts, filled slice by slice."""
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


def _border_value(values: NDArray[np.float32]) -> tuple[float, float]:
    """The commonest value on the six faces, and its share of their voxels."""
    faces = np.concatenate([np.take(values, (0, -1), axis).ravel() for axis in range(3)])
    found, counts = np.unique(faces, return_counts=True)
    return float(found[counts.argmax()]), float(counts.max() / faces.size)


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
