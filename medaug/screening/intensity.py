"""Rule "intensity": rejects images whose intensities, in a structure or the background, are unlike training scans.

It compares the mean and the standard deviation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.options import ScreenOptions
from medaug.screening.rules import Check, Judge, Reference, Rule, Sample

FEWEST_SCANS = 4
"""A structure is checked only if at least this many training scans hold it."""

_FEWEST_VOXELS = 8
# A floor for standard deviations between scans, of intensities in [-1, 1]: if the background is -1, real scans may
# agree exactly.
_LEAST_STD = 1e-3


def intensities(sample: Sample, schema: LabelSchema) -> dict[str, NDArray[np.float64] | None]:
    """Mean and standard deviation of each modality, (2 M,), in the background and each structure of a scan.

    Only voxels inside the scan count. None for a structure of fewer than 8 voxels.
    """
    image, mask = sample.image[:, *sample.inside].astype(np.float64), sample.mask[sample.inside]
    regions = {"background": mask == 0, **schema.structure_masks(mask)}
    found: dict[str, NDArray[np.float64] | None] = {}
    for name, region in regions.items():
        voxels = image[:, region]
        few = voxels.shape[1] < _FEWEST_VOXELS
        found[name] = None if few else np.concatenate([voxels.mean(axis=1), voxels.std(axis=1)])
    return found


def left_out_deviations(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each of the rows (n, k) is from the other rows, (n,): the largest of its k standardised deviations."""
    others = [np.delete(rows, i, axis=0) for i in range(len(rows))]
    return np.array([_deviation(row, other) for row, other in zip(rows, others, strict=True)])


def _deviation(row: NDArray[np.float64], rows: NDArray[np.float64]) -> float:
    return float((np.abs(row - rows.mean(axis=0)) / np.maximum(rows.std(axis=0, ddof=1), _LEAST_STD)).max())


def _fit(reference: Reference, options: ScreenOptions) -> Judge:
    schema = reference.schema
    real = [intensities(Sample.of_case(case), schema) for case in reference.labelled]
    tables = {
        name: np.array([scan[name] for scan in real if scan[name] is not None])
        for name in ("background", *schema.structures())
    }
    tables = {name: rows for name, rows in tables.items() if len(rows) >= FEWEST_SCANS}
    if not tables:
        raise UserError(
            f"screen.rules: the rule intensity needs {FEWEST_SCANS} labelled training scans, and there are {len(real)}",
            "leave the rule out",
        )
    quantile = options.intensity_quantile
    thresholds = {name: float(np.quantile(left_out_deviations(rows), quantile)) for name, rows in tables.items()}

    def judge(sample: Sample) -> list[Check]:
        found = intensities(sample, schema)
        return [
            Check(f"deviation in {name}", _deviation(row, tables[name]), thresholds[name], at_least=False)
            for name, row in found.items()
            if row is not None and name in tables
        ]

    return judge


INTENSITY = Rule(
    title="intensity",
    note="images whose mean or standard deviation in a structure or the background deviates from training scans more "
    "than these do from each other",
    fit=_fit,
)
