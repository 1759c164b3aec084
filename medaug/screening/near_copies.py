"""Rule "near_copies": rejects images that are copies of a training scan; two detectors look for them."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medaug.errors import UserError
from medaug.evaluation.memorisation import TrainingNeighbours
from medaug.options import ScreenOptions
from medaug.screening.rules import Check, Judge, Reference, Rule, Sample
from medaug.segmentation.unet import encode

SHIFT = 2
"""A volume is also compared after shifts by this many voxels along each axis, in both directions."""

CELLS = 2
"""Number of cells along each axis; features are averaged in each cell."""

_AXES = [flips for n in range(4) for flips in itertools.combinations((1, 2, 3), n)]


class FeatureNeighbours:
    """Finds the nearest training scan in the feature space of a segmenter.

    Features are those of the coarsest level, averaged in 2 x 2 x 2 cells and standardised over the training scans. All
    eight flips of a volume are compared, and the nearest one counts.

    Args:
        net: the segmenter.
        training: training scans, (M, X, Y, Z) each.
        subjects: subject of each training scan.
    """

    def __init__(self, net: nn.Module, training: list[NDArray[np.float32]], subjects: list[str]) -> None:
        features = np.stack([self._features(net, image) for image in training])
        self._net, self._subjects = net, np.asarray(subjects)
        self._mean, self._std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        self._training = (features - self._mean) / self._std

    def ratio(self, image: NDArray[np.float32]) -> tuple[float, int]:
        """Distance to the nearest training scan divided by the distance to the nearest scan of another subject.

        Low if one subject is much nearer than all others, 1 if two are equally near. Also returns the index of the
        nearest training scan.
        """
        flips = np.stack([self._features(self._net, np.flip(image, axes)) for axes in _AXES])
        apart = ((flips - self._mean) / self._std)[:, None] - self._training
        distances = np.linalg.norm(apart, axis=2).min(axis=0)
        nearest = int(distances.argmin())
        second = distances[self._subjects != self._subjects[nearest]].min()
        return float(distances[nearest] / max(second, 1e-12)), nearest

    @staticmethod
    def _features(net: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float64]:
        return encode(net, np.array(image), CELLS).astype(np.float64)


def _fit(reference: Reference, options: ScreenOptions) -> Judge:
    train, val = reference.train, reference.val
    subjects = [case.case.subject for case in train]
    if len(set(subjects)) < 2 or not val:
        raise UserError(
            "screen.rules: the rule near_copies needs training scans of two subjects and a validation scan",
            "leave the rule out",
        )
    assert reference.net is not None
    names = [case.case.name for case in train]
    coarse = TrainingNeighbours(case.image for case in train)
    learned = FeatureNeighbours(reference.net, [np.asarray(case.image) for case in train], subjects)
    held_out = [np.asarray(case.image) for case in val]
    quantile = options.copy_quantile
    similarity = float(np.quantile([coarse.nearest(image, SHIFT)[0] for image in held_out], quantile))
    ratio = float(np.quantile([learned.ratio(image)[0] for image in held_out], 1 - quantile))

    def judge(sample: Sample) -> list[Check]:
        (alike, one), (near, other) = coarse.nearest(sample.image, SHIFT), learned.ratio(sample.image)
        return [
            Check("similarity to the nearest training scan", alike, similarity, at_least=False, about=names[one]),
            Check("nearest over second nearest subject", near, ratio, at_least=True, about=names[other]),
        ]

    return judge


NEAR_COPIES = Rule(
    title="near copies",
    note="copies of a training scan, also flipped or slightly shifted: correlation of coarse volumes, and the ratio of "
    "the distances to the nearest and the second nearest subject in the screening segmenter's features, compared with "
    "held-out real scans",
    fit=_fit,
    needs_segmenter=True,
)
