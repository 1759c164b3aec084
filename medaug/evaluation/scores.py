"""How well a segmentation agrees with the truth: Dice and the 95th-percentile Hausdorff distance.

Every class of every case gets a finite value, so that an arm cannot look better by failing outright:
both masks empty: Dice 1, HD95 0; one of them empty: Dice 0, HD95 the diagonal of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

MEAN_FOREGROUND = "mean foreground"
"""The class under which the mean over all foreground classes is reported."""


def segmentation_scores(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    spacing: Sequence[float],
    classes: Sequence[str],
) -> list[tuple[str, str, float]]:
    """Score every foreground class of one case.

    Args:
        prediction: class indices (X, Y, Z), 0 = background.
        truth: class indices on the same grid.
        spacing: voxel sides in mm.
        classes: foreground names; the first is class index 1.

    Returns:
        (class, metric, value) with metrics "dice" (0 to 1) and "hd95" (mm).

    Raises:
        ValueError: the grids differ.
    """
    rows = []
    for index, name in enumerate(classes, start=1):
        p, t = _same_grid(prediction == index, truth == index)
        rows += [(name, "dice", dice(p, t)), (name, "hd95", hd95(p, t, spacing))]
    return rows


def dice(p: NDArray[np.bool_], t: NDArray[np.bool_]) -> float:
    """2 |p and t| / (|p| + |t|) of two masks of one shape (Dice 1945); 1 when both are empty."""
    total = int(p.sum()) + int(t.sum())
    return 2.0 * int((p & t).sum()) / total if total else 1.0


def hd95(p: NDArray[np.bool_], t: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of surface distances, mm.

    A mask's surface is its voxels with a face neighbour outside the mask (beyond the volume is outside);
    distances run between voxel centres; percentiles interpolate linearly, each surface voxel counting once
    whatever its area. Tools that pool both directions before the percentile report no larger a value.

    Args:
        p: mask (X, Y, Z).
        t: mask of the same shape.
        spacing: voxel sides in mm.
    """
    if not p.any() and not t.any():
        return 0.0
    if not p.any() or not t.any():
        return float(np.linalg.norm(np.multiply(p.shape, spacing)))
    one, other = (torch.from_numpy(mask)[None, None] for mask in (p, t))
    return float(compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=list(spacing)))


def mean_foreground_dice(prediction: NDArray[np.integer], truth: NDArray[np.integer], num_classes: int) -> float:
    """Mean of Dice over class indices 1 .. num_classes - 1 (`num_classes` counts the background).

    Raises:
        ValueError: the grids differ.
    """
    pairs = (_same_grid(prediction == index, truth == index) for index in range(1, num_classes))
    return float(np.mean([dice(p, t) for p, t in pairs]))


def _same_grid(p: NDArray[np.bool_], t: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} lie on different grids")
    return p, t
