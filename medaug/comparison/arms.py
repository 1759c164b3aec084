"""The benchmark's arms: what each one trains on, and which arm it is compared with.

Everything else is equal in all arms: segmenter, optimisation steps, batch size, seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medaug.data.batches import Augment
from medaug.data.cases import ModelCase
from medaug.data.transforms import classical
from medaug.errors import UserError
from medaug.options import ArmsOptions
from medaug.segmentation.protocol import TrainingSet
from medaug.tables import Table


@dataclass(frozen=True)
class Material:
    """What the arms may train on in one job.

    Attributes:
        real: labelled real training cases.
        synthetic: all synthetic pairs.
        synthetic_share: share of each batch that is synthetic, in arms with both kinds.
    """

    real: Sequence[ModelCase]
    synthetic: Sequence[ModelCase]
    synthetic_share: float


@dataclass(frozen=True)
class Arm:
    """An entry of the table of arms.

    Attributes:
        baseline: the arm that it is compared with, which lacks one ingredient; None: it is compared with no arm. If
            that arm is not part of a benchmark, the baseline's own baseline takes its place, and so on.
        real: whether it trains on the labelled real scans.
        augment: augmentation of every volume, real and synthetic alike; None: none.
        synthetic: whether it trains on the synthetic pairs.
    """

    baseline: str | None
    real: bool = True
    augment: Augment | None = None
    synthetic: bool = False

    def training_set(self, material: Material) -> TrainingSet:
        """What its segmenters train on."""
        real, synthetic = material.real if self.real else (), material.synthetic if self.synthetic else ()
        return TrainingSet(real, synthetic, material.synthetic_share, self.augment)


REAL = Arm(baseline=None)
REAL_CLASSICAL = Arm(baseline="real", augment=classical)
REAL_CLASSICAL_SYNTHETIC = Arm(baseline="real+classical", augment=classical, synthetic=True)
ARMS: Table[Arm] = Table("arms", "arm", Arm, key="arms.names")


def check_arms(options: ArmsOptions, batch_size: int) -> None:
    """Refuse arms that cannot be compared, and a share that leaves a batch without real or without synthetic volumes.

    Raises:
        UserError: no arm has a baseline to be compared with, or the share does not fit the batch size.
    """
    if not pairs_to_compare(options.names):
        raise UserError(f"arms.names={options.names}: none of these arms has another one as its baseline", "add one")
    mixed = [name for name in options.names if ARMS[name].real and ARMS[name].synthetic]
    if mixed and not 0 < round(batch_size * options.synthetic_share) < batch_size:
        raise UserError(
            f"arms.synthetic_share={options.synthetic_share:g} of segmenter.batch_size={batch_size} leaves no room for "
            "both real and synthetic volumes",
            "raise segmenter.batch_size or move the share towards 0.5",
        )


def pairs_to_compare(names: Sequence[str]) -> list[tuple[str, str]]:
    """(arm, baseline) for every arm whose baseline, or a baseline of that, is among `names`."""
    pairs = []
    for name in names:
        baseline = ARMS[name].baseline
        while baseline is not None and baseline not in names:
            baseline = ARMS[baseline].baseline
        if baseline is not None:
            pairs.append((name, baseline))
    return pairs
