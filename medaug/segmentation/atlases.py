"""Segmentation by atlases: labelled scans are registered to a scan, and their labels vote in every voxel.

An atlas counts more where its registered image resembles the scan, locally (Artaechevarria, Munoz-Barrutia and
Ortiz-de-Solorzano 2009, "Combination strategies in multi-atlas image segmentation", IEEE TMI 28(8), eq. 8: a power of
the local mean squared difference). Its errors are not those of a network, so it can be one more teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from medaug.cohort.schema import IGNORE
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.imaging.registration import register, register_affine
from medaug.options import SegmenterOptions
from medaug.segmentation.protocol import Problem, TrainingSet

NEIGHBOURHOOD = 2.0
"""Standard deviation of the Gaussian over which the squared difference is averaged, in voxels."""
POWER = 2.0
"""The vote of an atlas is its local mean squared difference to the power of minus this."""
_LEAST_DIFFERENCE = 1e-3


class AtlasSegmenter:
    """Labelled scans as atlases; a `SoftSegmenter` (`medaug.segmentation.protocol`) that is not a network.

    Args:
        problem: what to segment.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.atlases: Sequence[ModelCase] = ()

    def fit(self, training_set: TrainingSet, steps: int, seed: int, name: str) -> None:
        """Keep the labelled scans; nothing is trained, so steps and seed have no effect.

        Raises:
            UserError: the training set has synthetic volumes or pseudo-labels.
        """
        if training_set.synthetic or training_set.pseudo is not None or not training_set.real:
            raise UserError(f"{name}: atlases are real scans with human labels", "leave the arm out")
        self.atlases = training_set.real

    def predict(self, case: ModelCase) -> NDArray[np.uint8]:
        """Class indices (X, Y, Z) on the scan's own grid."""
        indices = self.soft_label(case.image).argmax(axis=0).astype(np.uint8)
        return self.problem.preprocessing.invert_label(indices, case.placement)

    def probabilities(self, case: ModelCase) -> NDArray[np.float32]:
        """Share of the votes for every class, (num_classes, X, Y, Z), on the scan's own grid."""
        return self.problem.preprocessing.invert_probabilities(self.soft_label(case.image)[1:], case.placement)

    def soft_label(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Share of the votes for every class, (num_classes, X, Y, Z), for an image (M, X, Y, Z) in model space.

        Registration uses the first modality, the votes' weights use all. Where every atlas is ignored or outside its
        grid, the background gets all votes.
        """
        classes = np.arange(self.problem.schema.num_classes)[:, None, None, None]
        votes = np.zeros((len(classes), *image.shape[1:]))
        for atlas in self.atlases:
            volumes, label = warped_to(image, np.asarray(atlas.image), np.asarray(atlas.label))
            difference = np.mean((image - volumes) ** 2, axis=0)
            weight = (gaussian_filter(difference, NEIGHBOURHOOD) + _LEAST_DIFFERENCE) ** -POWER
            votes += weight * (label == classes)
        total = votes.sum(axis=0)
        votes[0] += total == 0
        return (votes / (total + (total == 0))).astype(np.float32)


def warped_to(
    image: NDArray[np.float32], atlas: NDArray[np.float32], label: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Register an atlas to an image, and move its volumes (M, X, Y, Z) and its label (X, Y, Z) onto the image's grid.

    Voxels that come from outside the atlas's grid are ignored.
    """
    grid = np.indices(label.shape)
    affine = register_affine(atlas[0], image[0])
    aligned = map_coordinates(atlas[0], grid + affine, order=1, mode="nearest")
    dense = register(aligned, image[0])
    # x + dense(x) lies in the aligned atlas, and the affine displacement there leads on to the atlas itself.
    there = np.stack([map_coordinates(part, grid + dense, order=1, mode="nearest") for part in affine])
    positions = grid + dense + there
    volumes = np.stack([map_coordinates(volume, positions, order=1, mode="nearest") for volume in atlas])
    return volumes, map_coordinates(label, positions, order=0, mode="constant", cval=IGNORE)


@dataclass(frozen=True)
class AtlasBackend:
    """Makes `AtlasSegmenter`s."""

    def make(self, problem: Problem, options: SegmenterOptions) -> AtlasSegmenter:
        """A segmenter without atlases; the options of networks have no effect."""
        return AtlasSegmenter(problem)


ATLASES = AtlasBackend()
