"""Teachers: segmenters trained on human labels alone, whose predictions label the scans that have none."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.data.augmentations import Strong, mirror_axes
from medaug.data.cache import locked
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.evaluation.plausibility import FEWEST, Plausibility
from medaug.files import atomic_write
from medaug.options import Options
from medaug.segmentation.atlases import AtlasSegmenter
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem, PseudoLabels, SoftSegmenter, TrainingSet
from medaug.training.data import TrainingData

log = logging.getLogger(__name__)

Teach = Callable[[TrainingSet, int], SoftSegmenter]
"""Trains a segmenter on a training set with a seed."""


@dataclass(frozen=True)
class SoftLabels:
    """The predictions of teachers for some scans.

    Attributes:
        probabilities: for each scan, the probability of every class in every voxel, (C, X, Y, Z) uint8 in units of
            1/255.
        weights: weight of each scan, 0..1.
    """

    probabilities: Sequence[NDArray[np.uint8]]
    weights: Sequence[float]

    def save(self, path: Path) -> None:
        """Write an .npz file, atomically."""
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
        number: number of teachers.
        plausibility: whether scans with an unusual shape get less weight.
        schema: label schema.
        seed: seed from which the seeds of the teachers are derived.
        rounds: number of times that the scans are labelled; from the second round on, new teachers also train on the
            labels of the previous round.
        atlases: what to segment if the labelled scans, registered as atlases, are one more teacher; None: they are not.
    """

    teach: Teach
    number: int
    plausibility: bool
    schema: LabelSchema
    seed: int
    rounds: int = 1
    atlases: Problem | None = None

    def label(self, training_set: TrainingSet, scans: Sequence[ModelCase], path: Path | None = None) -> SoftLabels:
        """Train the teachers and let them label scans; if the file `path` exists, read its labels instead.

        Args:
            training_set: the real scans with human labels that the teachers train on.
            scans: scans without labels.
            path: file to store the result in; None: it is not stored.

        Raises:
            UserError: a training failed, or the file is damaged.
        """
        if path is not None and path.is_file():
            return SoftLabels.load(path)
        labels = self._labels(training_set, scans, 0)
        for number in range(1, self.rounds):
            strong = Strong(mirror_axes(self.schema))
            pseudo = PseudoLabels(scans, labels.probabilities, strong, weights=labels.weights)
            labels = self._labels(replace(training_set, pseudo=pseudo), scans, number)
        if path is not None:
            labels.save(path)
        return labels

    def _labels(self, training_set: TrainingSet, scans: Sequence[ModelCase], number: int) -> SoftLabels:
        """Train the teachers of a round and let them label scans."""
        names = ("teacher",) if number == 0 else ("teacher", number)
        seeds = [named_seed(self.seed, *names, teacher) for teacher in range(self.number)]
        teachers = [self.teach(training_set, seed) for seed in seeds]
        if self.atlases is not None:
            atlases = AtlasSegmenter(self.atlases)
            atlases.fit(replace(training_set, synthetic=(), pseudo=None), 0, 0, "atlases")
            teachers.append(atlases)
        probabilities = [mean_probabilities(teachers, scan) for scan in scans]
        return SoftLabels(probabilities, self._weights(training_set.real, probabilities))

    def _weights(self, real: Sequence[ModelCase], probabilities: Sequence[NDArray[np.uint8]]) -> list[float]:
        """The plausibility of the shape of each pseudo-label, from 0 to 1; always 1 without `plausibility`."""
        if not self.plausibility:
            return [1.0] * len(probabilities)
        subjects = [case.case.subject for case in real]
        if len(set(subjects)) < FEWEST:
            raise UserError(
                f"pseudo.plausibility: {len(set(subjects))} subjects have labels, at least {FEWEST} are needed to know "
                "which shapes are usual",
                "leave it out, or label more subjects",
            )
        usual = Plausibility.of([np.asarray(case.label) for case in real], subjects, mirror_axes(self.schema))
        weights = [usual.weight(shares.argmax(axis=0).astype(np.uint8)) for shares in probabilities]
        unusual = sum(weight < 0.5 for weight in weights)
        log.info(
            "pseudo-labels: %d of %d scans have a weight below one half because of their shape", unusual, len(weights)
        )
        return weights


def with_soft_labels(data: TrainingData, options: Options, path: Path) -> TrainingData:
    """Add soft labels to the data of a training, for its scans without labels.

    Teachers are trained on the labelled training scans. One process trains them; the others wait and read the file.

    Args:
        data: scans and card of the training.
        options: this function reads `pseudo`, `segmenter` and, for the backend and the default number of steps,
            `trainer`.
        path: file to store the labels in.

    Raises:
        UserError: all training scans have a label or none has, segmenters of the backend cannot be teachers, a training
            failed, or the file is damaged.
    """
    scans, backend = [case for case in data.train if case.label is None], options.trainer.selector_backend
    if not scans or not data.labelled:
        raise UserError(
            f"trainer.pseudo_labels: of {len(data.train)} training scans {len(data.labelled)} have a label",
            "teachers need scans with and without labels; leave it out",
        )
    card, steps = data.card, options.pseudo.steps or options.trainer.selector_steps
    problem = Problem(card.modalities, card.schema, card.preprocessing)

    def teach(training_set: TrainingSet, seed: int) -> SoftSegmenter:
        teacher = BACKENDS[backend].make(problem, options.segmenter)
        if not isinstance(teacher, SoftSegmenter):
            raise UserError(f"trainer.selector_backend={backend}: gives no probabilities, which teachers need")
        teacher.fit(training_set, steps, seed, "teacher")
        return teacher

    pseudo, seed = options.pseudo, options.trainer.seed
    atlases = problem if pseudo.atlases else None
    teachers = Teachers(teach, pseudo.teachers, pseudo.plausibility, card.schema, seed, pseudo.rounds, atlases)
    with locked(path, wait=True):
        labels = teachers.label(TrainingSet(data.labelled, augment=Strong(mirror_axes(card.schema))), scans, path)
    log.info("%d scans without a label have soft labels: %s", len(scans), path)
    found = iter(zip(labels.probabilities, labels.weights, strict=True))
    train = []
    for case in data.train:
        soft, trust = (None, 1.0) if case.label is not None else next(found)
        train.append(replace(case, soft=soft, trust=trust))
    return replace(data, train=train)


def mean_probabilities(teachers: Sequence[SoftSegmenter], case: ModelCase) -> NDArray[np.uint8]:
    """The mean of the probabilities that the teachers predict for a case, (C, X, Y, Z), in units of 1/255."""
    mean = np.mean([teacher.soft_label(case.image) for teacher in teachers], axis=0)
    return np.rint(255 * mean).astype(np.uint8)
