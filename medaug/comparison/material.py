"""What the arms of a benchmark may train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.segmentation.protocol import SoftSegmenter, TrainingSet


@dataclass(frozen=True)
class Material:
    """What the arms may train on in one job.

    Attributes:
        real: labelled real training cases.
        synthetic: all synthetic pairs.
        synthetic_share: share of each batch that is synthetic, for arms that use both kinds and set no ratio.
        schema: label schema.
        unlabelled: the other training cases, without their labels.
        seed: seed of the job.
        folder: folder for results that are computed once and used by several jobs.
        teach: trains a segmenter on a training set with a seed, for as many steps as the job's own segmenter.
    """

    real: Sequence[ModelCase]
    synthetic: Sequence[ModelCase]
    synthetic_share: float
    schema: LabelSchema
    unlabelled: Sequence[ModelCase] = ()
    seed: int = 0
    folder: Path = Path()
    teach: Callable[[TrainingSet, int], SoftSegmenter] | None = None
