"""What the arms of a benchmark may train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.segmentation.teachers import Teachers


@dataclass(frozen=True)
class Material:
    """What the arms may train on in one job.

    Attributes:
        real: labelled real training cases.
        synthetic: all synthetic pairs.
        synthetic_share: share of each batch that is synthetic, in arms with both kinds that do not fix it themselves.
        synthetic_finish: share of the steps, at the end, without synthetic pairs, in arms that train on both kinds.
        schema: label schema.
        unlabelled: the other training cases, without their labels.
        seed: seed of the job.
        folder: for deformations, which several jobs use.
        teachers: label scans without labels.
        pseudo_share: share of each batch that has pseudo-labels, in arms with self-training.
        pseudo_finish: share of the steps, at the end, without pseudo-labels.
        pseudo_cutmix: share of the volumes with pseudo-labels of which a block comes from another such scan.
        pseudo_folder: for pseudo-labels, which several arms of the job use; None: they are not kept.
    """

    real: Sequence[ModelCase]
    synthetic: Sequence[ModelCase]
    synthetic_share: float
    schema: LabelSchema
    unlabelled: Sequence[ModelCase] = ()
    seed: int = 0
    folder: Path = Path()
    teachers: Teachers | None = None
    pseudo_share: float = 0.5
    pseudo_finish: float = 0.2
    pseudo_folder: Path | None = None
    synthetic_finish: float = 0.0
    pseudo_cutmix: float = 0.0
