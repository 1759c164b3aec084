"""The interface of segmenters, and what they are trained on. A segmenter need not be a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medaug.cohort.schema import LabelSchema
from medaug.data.batches import Augment
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Preprocessing
from medaug.data.transforms import classical
from medaug.options import SegmenterOptions


class SoftAugment(Protocol):
    """An augmentation that can also change probabilities."""

    def soft(self, image: Tensor, probabilities: NDArray[np.float32], seed: int) -> tuple[Tensor, Tensor]:
        """Change an image (M, X, Y, Z) and the probabilities (C, X, Y, Z) of its voxels together."""


@dataclass(frozen=True)
class PseudoLabels:
    """Scans without labels, with the probabilities that teachers predict for them.

    Attributes:
        cases: the scans.
        probabilities: for each scan, the probability of every class in every voxel, (C, X, Y, Z) uint8 in units of
            1/255.
        augment: augmentation of these scans.
        share: share of each batch.
        finish: share of the steps, at the end, that use no pseudo-labels.
        weights: how far each scan is trusted, 0..1; None: all fully.
        cutmix: share of these volumes of which a block comes from another of the scans.
    """

    cases: Sequence[ModelCase]
    probabilities: Sequence[NDArray[np.uint8]]
    augment: SoftAugment
    share: float = 0.5
    finish: float = 0.2
    weights: Sequence[float] | None = None
    cutmix: float = 0.0


@dataclass(frozen=True)
class TrainingSet:
    """What a segmenter is trained on.

    Attributes:
        real: labelled real cases.
        synthetic: synthetic cases, with their masks as labels.
        synthetic_share: share of each batch that is synthetic, in 0..1; only used if there are cases of both kinds.
        augment: augmentation of every volume, real and synthetic alike; None: none.
        exact: whether the share holds on average over the steps; otherwise every batch has the same, rounded number.
        synthetic_finish: share of the steps, at the end, without synthetic cases, if there are real ones.
        pseudo: scans with pseudo-labels; the shares of the other kinds are of the rest of each batch.
        pretrained: whether the network begins with the weights of the generator (`medaug.segmentation.denoiser`).
    """

    real: Sequence[ModelCase]
    synthetic: Sequence[ModelCase] = ()
    synthetic_share: float = 0.5
    augment: Augment | None = classical
    exact: bool = False
    pseudo: PseudoLabels | None = None
    synthetic_finish: float = 0.0
    pretrained: bool = False

    @property
    def num_modalities(self) -> int:
        """Number of channels of an image."""
        return len((self.real[0] if self.real else self.synthetic[0]).image)

    def num_synthetic(self, batch_size: float) -> float:
        """How many volumes of a batch are synthetic."""
        if not (self.real and self.synthetic):
            return batch_size if self.synthetic else 0
        number = batch_size * self.synthetic_share
        return number if self.exact else round(number)


@dataclass(frozen=True)
class Problem:
    """What to segment.

    Attributes:
        modalities: names of the channels of an image.
        schema: the label schema; predictions are its class indices.
        preprocessing: brings scans from their own grid to model space and back.
        generator: checkpoint of the experiment's generator; None: there is none.
    """

    modalities: tuple[str, ...]
    schema: LabelSchema
    preprocessing: Preprocessing
    generator: Path | None = None


class Segmenter(Protocol):
    """A segmenter that is trained once and then applied to cases.

    It need not be a network, or even run in this process. A segmenter may also have a method
    `probabilities(case) -> (num_classes, X, Y, Z)`, the probability of every class on the scan's own grid. Calibration
    is measured only if it has this method.
    """

    def fit(self, training_set: TrainingSet, steps: int, seed: int, name: str) -> None:
        """Train; the same arguments give the same segmenter on the same machine.

        Args:
            training_set: cases in model space.
            steps: optimisation steps, the same in every arm of a benchmark.
            seed: seed of everything random.
            name: name of this training, for messages and the progress bar.

        Raises:
            UserError: the training failed.
        """

    def predict(self, case: ModelCase) -> NDArray[np.uint8]:
        """Class indices (X, Y, Z) on the scan's own grid.

        Raises:
            UserError: the prediction failed.
        """


@runtime_checkable
class SoftSegmenter(Segmenter, Protocol):
    """A segmenter that can be a teacher and can be trained on pseudo-labels."""

    def soft_label(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every class (num_classes, X, Y, Z) for an image (M, X, Y, Z) in model space.

        Raises:
            UserError: the prediction failed.
        """


@runtime_checkable
class Judge(Segmenter, Protocol):
    """A segmenter that also segments images in model space, such as samples, and can be saved to a file.

    The audit's judge and the selecting segmenter of a training must be a `Judge`; a benchmark needs only a `Segmenter`.
    """

    def segment(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Class indices (X, Y, Z) of an image (M, X, Y, Z) in model space.

        Raises:
            UserError: the prediction failed.
        """

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features (num_features,) that distinguish images (M, X, Y, Z) in model space from each other."""

    def save(self, path: Path) -> None:
        """Write the trained segmenter to a file, atomically."""

    def load(self, path: Path) -> None:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged or belongs to another segmenter.
        """


@runtime_checkable
class Backend(Protocol):
    """An entry of the table of backends: makes segmenters of one kind."""

    def make(self, problem: Problem, options: SegmenterOptions) -> Segmenter:
        """An untrained segmenter for a problem.

        Raises:
            UserError: the options do not fit this backend.
        """
