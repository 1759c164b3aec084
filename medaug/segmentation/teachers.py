"""Teachers: segmenters trained on human labels alone, whose predictions label the scans that have none."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.data.augmentations import mirror_axes
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.evaluation.plausibility import FEWEST, Plausibility
from medaug.files import atomic_write
from medaug.segmentation.protocol import SoftSegmenter, TrainingSet

log = logging.getLogger(__name__)

Teach = Callable[[TrainingSet, int], SoftSegmenter]
"""Trains a segmenter on a training set with a seed."""


@dataclass(frozen=True)
class SoftLabels:
    """What teachers predict for some scans.

    Attributes:
        probabilities: probability of every class in every voxel of each scan, (C, X, Y, Z) uint8 in 1/255.
        weights: how far each scan is trusted, 0..1.
    """

    probabilities: Sequence[NDArray[np.uint8]]
    weights: Sequence[float]

    def save(self, path: Path) -> None:
        """Write an .npz file; it is whole or absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, probabilities=np.stack(self.probabilities), weights=np.array(self.weights))

    @classmethod
    def load(cls, path: Path) -> SoftLabels:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(list(arrays["probabilities"]), [float(weight) for weight in arrays["weights"]])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError("damaged pseudo-labels", "remove the file; they are made again", path=path) from error


@dataclass(frozen=True)
class Teachers:
    """How scans without labels get pseudo-labels.

    Attributes:
        teach: trains one teacher.
        number: how many there are.
        plausibility: whether scans with an unusual shape count less.
        schema: label schema.
        seed: seed from which those of the teachers are made.
    """

    teach: Teach
    number: int
    plausibility: bool
    schema: LabelSchema
    seed: int

    def label(self, training_set: TrainingSet, scans: Sequence[ModelCase], path: Path | None = None) -> SoftLabels:
        """Train the teachers and let them label scans; with a path, only if the file does not exist yet.

        Args:
            training_set: what the teachers train on: real scans with human labels.
            scans: scans without labels.
            path: file that keeps the result; None: it is not kept.

        Raises:
            UserError: a training failed, or the file is damaged.
        """
        if path is not None and path.is_file():
            return SoftLabels.load(path)
        seeds = [named_seed(self.seed, "teacher", number) for number in range(self.number)]
        teachers = [self.teach(training_set, seed) for seed in seeds]
        probabilities = [mean_probabilities(teachers, scan) for scan in scans]
        labels = SoftLabels(probabilities, self._weights(training_set.real, probabilities))
        if path is not None:
            labels.save(path)
        return labels

    def _weights(self, real: Sequence[ModelCase], probabilities: Sequence[NDArray[np.uint8]]) -> list[float]:
        """How plausible the shape of each pseudo-label is, from 0 to 1; without `plausibility`, 1."""
        if not self.plausibility:
            return [1.0] * len(probabilities)
        subjects = [case.case.subject for case in real]
        if len(set(subjects)) < FEWEST:
            raise UserError(
                f"pseudo.plausibility: {len(set(subjects))} subjects have labels, at least {FEWEST} are needed to know "
                "which shapes are usual",
                "leave it out, or label more",
            )
        usual = Plausibility.of([np.asarray(case.label) for case in real], subjects, mirror_axes(self.schema))
        weights = [usual.weight(shares.argmax(axis=0).astype(np.uint8)) for shares in probabilities]
        unusual = sum(weight < 0.5 for weight in weights)
        log.info("pseudo-labels: %d of %d scans count less than half, for their shape", unusual, len(weights))
        return weights


def mean_probabilities(teachers: Sequence[SoftSegmenter], case: ModelCase) -> NDArray[np.uint8]:
    """The mean of what the teachers predict for a case, (C, X, Y, Z) in 1/255."""
    mean = np.mean([teacher.soft_label(case.image) for teacher in teachers], axis=0)
    return np.rint(255 * mean).astype(np.uint8)
