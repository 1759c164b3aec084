"""Lesion-wise scores, which count connected components instead of voxels: sensitivity and F1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

CONNECTIVITY = {6: 1, 18: 2, 26: 3}
"""Number of neighbours of a voxel -> number of coordinates that may differ between neighbours."""


def lesion_sensitivity(p: NDArray[np.bool_], t: NDArray[np.bool_], connectivity: int = 26) -> float:
    """Share of true lesions that a prediction overlaps by at least one voxel, in 0..1; 1 if there are no lesions.

    Args:
        p: predicted mask (X, Y, Z).
        t: true mask of the same shape.
        connectivity: a lesion is a connected component of voxels with this many neighbours: 6 (faces), 18 (and edges)
            or 26 (and corners).
    """
    return _share_that_touches(t, p, connectivity)


def lesion_f1(p: NDArray[np.bool_], t: NDArray[np.bool_], connectivity: int = 26) -> float:
    """Harmonic mean of the share of true lesions that are found and the share of predicted lesions that are correct.

    A true lesion is found, and a predicted lesion is correct, if it shares at least one voxel with the other mask
    (Commowick et al., Scientific Reports 8, 13650, 2018, who also require a minimum overlap).

    Args:
        p: predicted mask (X, Y, Z).
        t: true mask of the same shape.
        connectivity: see `lesion_sensitivity`.

    Returns:
        0..1; 1 if both masks are empty, 0 if one is.
    """
    if not p.any() or not t.any():
        return float(not p.any() and not t.any())
    found, right = _share_that_touches(t, p, connectivity), _share_that_touches(p, t, connectivity)
    return 2 * found * right / (found + right) if found else 0.0


def _share_that_touches(mask: NDArray[np.bool_], other: NDArray[np.bool_], connectivity: int) -> float:
    """Share of the components of a mask that have a voxel in the other mask; 1 if there are no components."""
    components, number = label(mask, generate_binary_structure(3, CONNECTIVITY[connectivity]))
    return np.count_nonzero(np.unique(components[other])) / number if number else 1.0
