"""Membership inference: whether the pairs reveal which scans their generator was trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medaug.auditing.measures import Material, Measure
from medaug.auditing.results import Group
from medaug.evaluation.membership import separation
from medaug.evaluation.memorisation import TrainingNeighbours

AREA = "area_under_curve"


def membership(material: Material) -> Iterator[Group]:
    """The similarity of training and of validation scans to their nearest pair, and the area under the ROC curve."""
    assert material.train is not None
    if not (material.train and material.val) or len(material.synthetic) < 2:
        return
    pairs = TrainingNeighbours(np.asarray(case.image) for case in material.synthetic)
    seed, groups = material.settings.seed, (("training", material.train), ("real_validation", material.val))
    values = {
        images: np.array([pairs.nearest(np.asarray(case.image))[0] for case in cases]) for images, cases in groups
    }
    for images, cases in groups:
        yield Group.of_cases(images, cases, values[images], seed)
    train, val = ([case.case.subject for case in cases] for _, cases in groups)
    yield Group(AREA, separation(values["training"], train, values["real_validation"], val, seed))


MEMBERSHIP = Measure(
    "Membership inference",
    "",
    3,
    None,
    "similarity of real scans to the nearest synthetic one (correlation of coarse volumes), and the probability that a "
    "training scan is more similar than a validation scan (area under the ROC curve): 0.5 if the pairs do not reveal "
    "who was trained on, more if they do. Scans whose masks were used for pairs are more similar for that reason alone",
    membership,
    needs=("train",),
)
