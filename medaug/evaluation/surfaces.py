"""Normalised surface Dice of two masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

ROUNDING = 1e-6
"""Slack in mm, so that rounding does not decide whether a distance equal to the tolerance is accepted."""


def surface_dice(p: NDArray[np.bool_], t: NDArray[np.bool_], spacing: Sequence[float], tolerance: float) -> float:
    """Normalised surface Dice: the share of both surfaces that lies within `tolerance` of the other surface.

    The surface of a mask consists of its voxels that have a face neighbour outside the mask or outside the volume
    (Nikolov et al., J. Med. Internet Res. 23(7), 2021). Distances are between voxel centres, and each surface voxel
    counts once, whatever its area.

    Args:
        p: mask (X, Y, Z).
        t: mask of the same shape.
        spacing: voxel sides in mm.
        tolerance: mm, at least 0; a distance of exactly the tolerance is accepted.

    Returns:
        0..1; 1 if both masks are empty, 0 if one is.
    """
    if not p.any() or not t.any():
        return float(not p.any() and not t.any())
    box = _bounding_box(p | t)
    one, other = (_surface(mask[box]) for mask in (p, t))
    within = sum(
        int((distance_transform_edt(~target, sampling=spacing)[source] <= tolerance + ROUNDING).sum())
        for source, target in ((one, other), (other, one))
    )
    return within / (int(one.sum()) + int(other.sum()))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~binary_erosion(mask)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that contains a mask; all surface voxels are in it, and voxels beyond its faces are outside."""
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]
    return tuple(slice(places[0], places[-1] + 1) for places in ends)
