"""How well a segmentation agrees with the truth: a table of metrics, such as Dice.

The schema's structures are scored: its regions, or its foreground classes if it has no regions. Voxels that the truth
ignores count in neither mask. Every structure of every case must get a finite value, empty masks included, so that an
arm cannot look better by failing outright.

A metric is one entry of `METRICS` and one function. It then appears in the score files of benchmark and predict, in
the comparison of arms, on the console and in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.tables import Table

Mask = NDArray[np.bool_]

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
        schema: the labels; its structures are scored.

    Returns:
        (structure, metric, value) for each structure and each metric of `METRICS`.

    Raises:
        ValueError: the grids differ.
    """
    return [
        (name, metric, entry.function(p, t, spacing))
        for name, (p, t) in _masks(prediction, truth, schema).items()
        for metric, entry in METRICS.items()
    ]


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


@dataclass(frozen=True)
class Metric:
    """An entry of the table of metrics.

    Attributes:
        title: its name in tables and reports, such as "HD95".
        unit: unit of its values, such as "mm"; empty if they have none.
        digits: decimals shown.
        higher_is_better: whether a higher value means better agreement. None: values have a sign, as a difference of
            volumes has, and the nearer to 0 the better; arms are then compared by absolute values.
        note: what it is and what empty masks get, for the report.
        function: (prediction, truth, voxel sides in mm) to a finite value; both masks are (X, Y, Z).
    """

    title: str
    unit: str
    digits: int
    higher_is_better: bool | None
    note: str
    function: Callable[[Mask, Mask, Sequence[float]], float]

    @property
    def heading(self) -> str:
        """Title with unit, such as "HD95 (mm)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def is_signed(self) -> bool:
        """Whether values have a sign, and the nearer to 0 the better."""
        return self.higher_is_better is None

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        if self.is_signed:
            return "nearer to 0 is better, so arms are compared by absolute values"
        return "higher is better" if self.higher_is_better else "lower is better"


DICE = Metric(
    title="Dice",
    unit="",
    digits=3,
    higher_is_better=True,
    note="1 when prediction and truth are both empty, 0 when one is",
    function=lambda p, t, spacing: dice(p, t),
)
HD95 = Metric(
    title="HD95",
    unit="mm",
    digits=2,
    higher_is_better=False,
    note="the larger of the two directed 95th percentiles of distances between surface voxels; 0 when both are "
    "empty, the diagonal of the volume when one is",
    function=hd95,
)
METRICS: Table[Metric] = Table("metrics", "metric", Metric)


def _masks(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], schema: LabelSchema
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} lie on different grids")
    predicted = schema.structure_masks(np.where(truth == IGNORE, IGNORE, prediction))
    return {name: (predicted[name], mask) for name, mask in schema.structure_masks(truth).items()}
