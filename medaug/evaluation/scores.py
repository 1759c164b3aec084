"""How well a segmentation agrees with the truth: Dice and the 95th-percentile Hausdorff distance.

What is scored are the schema's structures: its regions, or its foreground classes where it has none. Voxels that the
truth ignores count in neither mask. Every structure of every case gets a finite value, so that an arm cannot look
better by failing outright: both masks empty: Dice 1, HD95 0; one of them empty: Dice 0, HD95 the diagonal of the
volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

from medaug.cohort.schema import IGNORE, LabelSchema

MEAN_FOREGROUND = "mean foreground"
"""The name under which the mean over all structures is reported."""


def segmentation_scores(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    spacing: Sequence[float],
    schema: LabelSchema,
) -> list[tuple[str, str, float]]:
    """Score every structure of one case.

    Args:
        prediction: class indices (X, Y, Z), 0 = background.
        truth: class indices or IGNORE on the same grid.
        spacing: voxel sides in mm.
        schema: of the labels; its structures are scored.

    Returns:
        (structure, metric, value) with metrics "dice" (0 to 1) and "hd95" (mm).

    Raises:
        ValueError: the grids differ.
    """
    rows = []
    for name, (p, t) in _masks(prediction, truth, schema).items():
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


def mean_foreground_dice(prediction: NDArray[np.integer], truth: NDArray[np.integer], schema: LabelSchema) -> float:
    """Mean of Dice over the structures of `schema`. Args and errors as `segmentation_scores`."""
    return float(np.mean([dice(p, t) for p, t in _masks(prediction, truth, schema).values()]))


def _masks(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], schema: LabelSchema
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} lie on different grids")
    predicted = schema.structure_masks(np.where(truth == IGNORE, IGNORE, prediction))
    return {name: (predicted[name], mask) for name, mask in schema.structure_masks(truth).items()}
