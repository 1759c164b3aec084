"""Calibration of a segmenter's probabilities: Brier score and expected calibration error of one structure.

Both are measured in a box around the true structure. Farther away every segmenter is correct and certain, so a volume
that is mostly background would look well calibrated whatever happens at the boundary. The box depends only on the
truth, so all arms are measured on the same voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MARGIN = 10.0
"""Distance in mm by which the box extends beyond the true structure."""

BINS = 15


def brier(probability: NDArray[np.floating], t: NDArray[np.bool_]) -> float:
    """Brier score: mean squared difference between probabilities and truth, of any shape (Brier 1950).

    0 is perfect, 1 is the worst value.
    """
    return float(np.mean((probability.astype(np.float64) - t) ** 2))


def calibration_error(probability: NDArray[np.floating], t: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error, 0..1 (Naeini, Cooper, Hauskrecht, AAAI 2015).

    It is the mean over bins of |mean probability - share of true voxels|, weighted by the number of voxels in the bin.
    The bins have equal width over 0..1 and are closed on the right.

    Args:
        probability: probability that each voxel is true, any shape.
        t: truth, same shape.
        bins: number of bins.
    """
    p = np.ravel(probability).astype(np.float64)
    place = np.clip(np.ceil(p * bins) - 1, 0, bins - 1).astype(int)
    gaps = np.bincount(place, p, bins) - np.bincount(place, np.ravel(t), bins)
    return float(np.abs(gaps).sum() / p.size)


def calibration_box(
    t: NDArray[np.bool_], judged: NDArray[np.bool_], spacing: Sequence[float], margin: float = MARGIN
) -> NDArray[np.bool_]:
    """The voxels in which calibration is measured: a box around the true structure, without ignored voxels.

    Args:
        t: true mask (X, Y, Z).
        judged: mask of the voxels whose truth is known.
        spacing: voxel sides in mm.
        margin: distance in mm by which the box extends beyond the structure.

    Returns:
        (X, Y, Z) bool. If the structure is absent, the box is the whole volume. If the truth is unknown in the whole
        box, its ignored voxels are kept.
    """
    box = np.ones(t.shape, bool)
    if t.any():
        for axis, side in enumerate(spacing):
            others = tuple(a for a in range(t.ndim) if a != axis)
            places, reach = np.flatnonzero(t.any(axis=others)), int(np.ceil(margin / side))
            inside = np.zeros(t.shape[axis], bool)
            inside[max(0, places[0] - reach) : places[-1] + reach + 1] = True
            box &= np.expand_dims(inside, others)
    return box & judged if (box & judged).any() else box
