"""Rule "duplicates": rejects pairs that are near copies of an earlier pair of the set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medaug.errors import UserError
from medaug.evaluation.memorisation import CoarseVolumes
from medaug.options import ScreenOptions
from medaug.screening.rules import Check, Judge, Reference, Rule, Sample


def _fit(reference: Reference, options: ScreenOptions) -> Judge:
    subjects = np.asarray([case.case.subject for case in reference.train])
    if len(set(subjects)) < 2:
        raise UserError("screen.rules: the rule duplicates needs training scans of two subjects", "leave the rule out")
    space = CoarseVolumes(case.image for case in reference.train)
    between = np.where(subjects[:, None] != subjects, space.units @ space.units.T, -np.inf)
    threshold = float(np.quantile(between.max(axis=1), options.copy_quantile))
    kept: list[NDArray[np.float64]] = []

    def judge(sample: Sample) -> list[Check]:
        unit = space.unit(sample.image)
        nearest = max((float(unit @ other) for other in kept), default=-1.0)
        check = Check("similarity to an earlier pair", nearest, threshold, at_least=False)
        if check.passed:
            kept.append(unit)
        return [check]

    return judge


DUPLICATES = Rule(
    title="near-duplicates",
    note="pairs more similar to an earlier pair of the set than training scans are to the nearest one of another "
    "subject",
    fit=_fit,
    in_order=True,
)
