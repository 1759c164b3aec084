"""Rule "integrity": rejects volumes that are empty, clipped or torn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import foreground
from medaug.errors import UserError
from medaug.options import ScreenOptions
from medaug.screening.rules import Check, Judge, Reference, Rule, Sample

CLIPPED_MARGIN = 0.05
"""How much larger than in any training scan the share of voxels at an end of the scale may be."""

_EXTREME = 1 - 1e-3
_CONSTANT = 1e-4


def contrast(sample: Sample) -> float:
    """Standard deviation of the voxels inside the scan, in the modality where it is lowest."""
    return float(sample.image[:, *sample.inside].std(axis=(1, 2, 3), dtype=np.float64).min())


def share_at(sample: Sample, end: int) -> float:
    """Share of the voxels inside the scan that are at the low (`end` -1) or high (1) end of the scale.

    The modality with the largest share counts.
    """
    return float((sample.image[:, *sample.inside] * end >= _EXTREME).mean(axis=(1, 2, 3)).max())


def largest_step(sample: Sample) -> float:
    """The largest step between two neighbouring slices, as a multiple of the mean step, over all axes and modalities.

    A step is the mean absolute difference between two neighbouring slices. Where a slice is missing, or where the
    volume is shifted, there is a larger step than anatomy makes.
    """
    ratios = [0.0]
    for volume in sample.image[:, *sample.inside]:
        for axis in range(3):
            if volume.shape[axis] < 3:
                continue
            steps = _mean_over_slices(np.abs(np.diff(volume.astype(np.float64), axis=axis)), axis)
            if steps.mean() > 0:
                ratios.append(float(steps.max() / steps.mean()))
    return max(ratios)


def constant_slices(sample: Sample) -> int:
    """Number of slices along any axis that hold foreground and in which a modality is constant."""
    structure = foreground(sample.mask)[sample.inside]
    found = 0
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        spread = np.ptp(sample.image[:, *sample.inside], axis=tuple(other + 1 for other in others))
        found += int(((spread < _CONSTANT).any(axis=0) & structure.any(axis=others)).sum())
    return found


def _fit(reference: Reference, options: ScreenOptions) -> Judge:
    if not reference.labelled:
        raise UserError("screen.rules: the rule integrity needs labelled training scans", "leave the rule out")
    real = [Sample.of_case(case) for case in reference.labelled]
    least_contrast = min(contrast(scan) for scan in real) / 2
    most_low, most_high = (max(share_at(scan, end) for scan in real) + CLIPPED_MARGIN for end in (-1, 1))
    steps = np.array([largest_step(scan) for scan in real])
    most_step = float(steps.max() + np.ptp(steps))
    most_constant = max(constant_slices(scan) for scan in real)

    def judge(sample: Sample) -> list[Check]:
        return [
            Check("standard deviation", contrast(sample), least_contrast, at_least=True),
            Check("share of voxels at the low end", share_at(sample, -1), most_low, at_least=False),
            Check("share of voxels at the high end", share_at(sample, 1), most_high, at_least=False),
            Check("largest step between slices", largest_step(sample), most_step, at_least=False),
            Check("constant slices", constant_slices(sample), most_constant, at_least=False),
        ]

    return judge


def _mean_over_slices(volume: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(volume.mean(axis=tuple(other for other in range(3) if other != axis)))


INTEGRITY = Rule(
    title="integrity",
    note="empty, clipped or torn volumes: contrast, voxels at the ends of the scale, steps between slices and constant "
    "slices, compared with training scans",
    fit=_fit,
)
