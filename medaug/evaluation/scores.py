"""How well a segmentation agrees with the truth: a table of metrics, such as Dice.

The schema's structures are scored: its regions, or its foreground classes if it has no regions. Voxels that the truth
ignores count in neither mask. Every structure of every case must get a finite value, even if a mask is empty, so that
an arm cannot look better by failing outright.

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
from medaug.errors import UserError
from medaug.evaluation.calibration import brier, calibration_box, calibration_error
from medaug.evaluation.lesions import lesion_f1, lesion_sensitivity
from medaug.evaluation.surfaces import surface_dice
from medaug.options import ScoringOptions
from medaug.tables import Table

Mask = NDArray[np.bool_]

MEAN_FOREGROUND = "mean foreground"
"""The name under which the mean over all structures is reported."""


@dataclass(frozen=True)
class Context:
    """What some metrics need besides the two masks. A metric is left out if anything that it needs is None.

    Attributes:
        tolerance: distance in mm between surfaces that counts as agreement.
        connectivity: number of neighbours by which voxels belong to the same lesion (6, 18 or 26); None: the structure
            does not consist of lesions.
        probability: probability of the structure in each voxel, (X, Y, Z) in 0..1; None: the segmenter gives none.
        judged: voxels whose truth is known, (X, Y, Z).
    """

    tolerance: float
    connectivity: int | None
    probability: NDArray[np.floating] | None
    judged: Mask


def segmentation_scores(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    spacing: Sequence[float],
    schema: LabelSchema,
    options: ScoringOptions | None = None,
    probabilities: NDArray[np.floating] | None = None,
) -> list[tuple[str, str, float]]:
    """Score every structure of one case.

    Args:
        prediction: class indices (X, Y, Z), 0 = background.
        truth: class indices or IGNORE on the same grid.
        spacing: voxel sides in mm.
        schema: the label schema, whose structures are scored.
        options: tolerance and lesions; None: the defaults.
        probabilities: probabilities of the classes, (num_classes, X, Y, Z); None: calibration is not measured.

    Returns:
        (structure, metric, value) for each structure and each metric of `METRICS` that applies to it.

    Raises:
        ValueError: the grids differ.
    """
    options = options or ScoringOptions()
    judged, members = truth != IGNORE, schema.structures()
    rows = []
    for name, (p, t) in _masks(prediction, truth, schema).items():
        probability = None if probabilities is None else probabilities[list(members[name])].sum(0)
        context = Context(options.tolerance, 26 if name in options.lesions else None, probability, judged)
        rows += [
            (name, metric, entry.value(p, t, spacing, context))
            for metric, entry in METRICS.items()
            if entry.applies(context)
        ]
    return rows


def check_scoring(options: ScoringOptions, schema: LabelSchema) -> None:
    """Check that the schema has the structures in `scoring.lesions`.

    Raises:
        UserError: it lacks one; names the structures that can be scored.
    """
    known = list(schema.structures())
    if unknown := [name for name in options.lesions if name not in known]:
        raise UserError(f"scoring.lesions: {unknown[0]} is not scored here", f"choose from {', '.join(known)}")


def dice(p: NDArray[np.bool_], t: NDArray[np.bool_]) -> float:
    """2 |p and t| / (|p| + |t|) of two masks of the same shape (Dice 1945); 1 if both are empty."""
    total = int(p.sum()) + int(t.sum())
    return 2.0 * int((p & t).sum()) / total if total else 1.0


def hd95(p: NDArray[np.bool_], t: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of surface distances, mm.

    The surface of a mask consists of its voxels that have a face neighbour outside the mask or outside the volume.
    Distances are between voxel centres. Percentiles are interpolated linearly, and each surface voxel counts once,
    whatever its area. Tools that pool both directions before taking the percentile report the same or a smaller value.
    If both masks are empty the result is 0; if one is empty, it is the diagonal of the volume.

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
    """Mean Dice over the structures of the schema; for arguments and errors see `segmentation_scores`."""
    return float(np.mean(list(structure_dice(prediction, truth, schema).values())))


def structure_dice(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], schema: LabelSchema
) -> dict[str, float]:
    """Dice of each structure of the schema; for arguments and errors see `segmentation_scores`."""
    return {name: dice(p, t) for name, (p, t) in _masks(prediction, truth, schema).items()}


def volume_error(p: NDArray[np.bool_], t: NDArray[np.bool_]) -> float:
    """Signed difference of two volumes relative to their mean, in %; below 0 if the prediction is too small.

    Ranges from -200 (an empty prediction) to 200 (an empty truth); 0 if both are empty. Unlike the difference relative
    to the truth, it is defined if the truth is empty; for small errors the two agree.
    """
    predicted, true = int(p.sum()), int(t.sum())
    return 200.0 * (predicted - true) / (predicted + true) if predicted + true else 0.0


@dataclass(frozen=True)
class Metric:
    """An entry of the table of metrics.

    Attributes:
        title: name of the metric in tables and reports, such as "HD95".
        unit: unit of the values, such as "mm"; empty if they have none.
        digits: number of decimals to show.
        higher_is_better: whether a higher value means better agreement. None: values have a sign, as a difference of
            volumes has, and nearer to 0 is better; arms are then compared by absolute values.
        note: what the metric is and what empty masks get, for the report.
        function: computes a finite value from the prediction and the truth, both (X, Y, Z), the voxel sides in mm, and
            the keyword arguments in `needs`.
        needs: attributes of `Context` that the function takes as keyword arguments.
        beware: what the metric does not show, for the report; after Metrics Reloaded (Maier-Hein et al. 2024).
    """

    title: str
    unit: str
    digits: int
    higher_is_better: bool | None
    note: str
    function: Callable[..., float]
    needs: tuple[str, ...] = ()
    beware: str = ""

    @property
    def heading(self) -> str:
        """Title with unit, such as "HD95 (mm)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def is_signed(self) -> bool:
        """Whether values have a sign, so that nearer to 0 is better."""
        return self.higher_is_better is None

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        if self.is_signed:
            return "nearer to 0 is better, so arms are compared by absolute values"
        return "higher is better" if self.higher_is_better else "lower is better"

    def applies(self, context: Context) -> bool:
        """Whether the context holds everything that the metric needs."""
        return all(getattr(context, name) is not None for name in self.needs)

    def value(self, p: Mask, t: Mask, spacing: Sequence[float], context: Context) -> float:
        """The value for one structure of one case; for the arguments see `function`."""
        return self.function(p, t, spacing, **{name: getattr(context, name) for name in self.needs})


def _in_box(score: Callable[[NDArray[np.floating], Mask], float]) -> Callable[..., float]:
    """Make the function of a metric that measures calibration in the box around the true structure."""

    def measured(p: Mask, t: Mask, spacing: Sequence[float], probability: NDArray[np.floating], judged: Mask) -> float:
        box = calibration_box(t, judged, spacing)
        return score(probability[box], t[box])

    return measured


DICE = Metric(
    title="Dice",
    unit="",
    digits=3,
    higher_is_better=True,
    note="1 if prediction and truth are both empty, 0 if only one is",
    beware="Small structures score lower for the same boundary error: compare within a structure only",
    function=lambda p, t, spacing: dice(p, t),
)
HD95 = Metric(
    title="HD95",
    unit="mm",
    digits=2,
    higher_is_better=False,
    note="the larger of the two directed 95th percentiles of distances between surface voxels; 0 if both masks are "
    "empty, the diagonal of the volume if only one is",
    beware="One stray voxel far away does not show, a twentieth of the surface does",
    function=hd95,
)
NSD = Metric(
    title="NSD",
    unit="",
    digits=3,
    higher_is_better=True,
    note="normalised surface Dice: share of both surfaces that lies within scoring.tolerance of the other one; 1 if "
    "both masks are empty, 0 if only one is",
    beware="It has a meaning only with a tolerance that suits the use",
    function=surface_dice,
    needs=("tolerance",),
)
VOLUME_ERROR = Metric(
    title="Volume error",
    unit="%",
    digits=1,
    higher_is_better=None,
    note="predicted minus true volume, relative to their mean: below 0 if the prediction is too small, -200 if only "
    "the prediction is empty, 200 if only the truth is empty, 0 if both are",
    beware="It says nothing about the place",
    function=lambda p, t, spacing: volume_error(p, t),
)
LESION_F1 = Metric(
    title="Lesion F1",
    unit="",
    digits=3,
    higher_is_better=True,
    note="harmonic mean of two shares: true lesions that the prediction overlaps, and predicted lesions that overlap "
    "the truth, by at least one voxel; voxels that share a face, an edge or a corner belong to one lesion; 1 if both "
    "masks are empty, 0 if only one is",
    beware="An overlap of one voxel is enough: read it beside Dice",
    function=lambda p, t, spacing, connectivity: lesion_f1(p, t, connectivity),
    needs=("connectivity",),
)
LESION_SENSITIVITY = Metric(
    title="Lesion sensitivity",
    unit="",
    digits=3,
    higher_is_better=True,
    note="share of true lesions that the prediction overlaps by at least one voxel; 1 if there are none",
    beware="False lesions do not lower it: read it beside lesion F1",
    function=lambda p, t, spacing, connectivity: lesion_sensitivity(p, t, connectivity),
    needs=("connectivity",),
)
ECE = Metric(
    title="ECE",
    unit="",
    digits=3,
    higher_is_better=False,
    note="expected calibration error in 15 bins, in a box that reaches 10 mm beyond the true structure",
    beware="It does not reward accuracy: read it beside Dice",
    function=_in_box(calibration_error),
    needs=("probability", "judged"),
)
BRIER = Metric(
    title="Brier score",
    unit="",
    digits=4,
    higher_is_better=False,
    note="mean squared difference between probability and truth, in the same box",
    beware="It also falls when the segmentation gets better",
    function=_in_box(brier),
    needs=("probability", "judged"),
)
METRICS: Table[Metric] = Table("metrics", "metric", Metric)


def _masks(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], schema: LabelSchema
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} are on different grids")
    predicted = schema.structure_masks(np.where(truth == IGNORE, IGNORE, prediction))
    return {name: (predicted[name], mask) for name, mask in schema.structure_masks(truth).items()}
