"""The benchmark's arms: what each one trains on, and which arm it is compared with.

Everything else is equal in all arms: optimisation steps, batch size, seeds, and, unless an arm names its own, the
segmenter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medaug.comparison.deformations import warp
from medaug.comparison.made_pairs import alternating, contrast_random, copy_paste, volume_matched
from medaug.comparison.material import Material
from medaug.comparison.self_training import with_pseudo_labels
from medaug.data.augmentations import AUGMENTATIONS
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.options import ArmsOptions
from medaug.segmentation.protocol import TrainingSet
from medaug.tables import Table


@dataclass(frozen=True)
class Arm:
    """An entry of the table of arms.

    Attributes:
        baseline: the arm that this arm is compared with, which lacks one ingredient; None: there is none. If the
            baseline is not part of a benchmark, its own baseline takes its place, and so on.
        real: whether it trains on the labelled real scans.
        augment: augmentation of every volume, real and synthetic alike, by its name in `AUGMENTATIONS`; None: none.
        synthetic: whether it trains on the generator's pairs.
        made: function that makes pairs without a generator; None: no such pairs. With `synthetic`, one half of the
            synthetic volumes are these and the other half the generator's.
        ratio: synthetic volumes per real one, on average over the steps; None: the share `arms.synthetic_share` of each
            batch is synthetic.
        pseudo_labels: whether it also trains on scans without labels, labelled by teachers.
        backend: segmenter backend of this arm; None: that of the benchmark.
        pretrained: whether the segmenter begins with the weights of the generator.
    """

    baseline: str | None
    real: bool = True
    augment: str | None = None
    synthetic: bool = False
    made: Callable[[Material], Sequence[ModelCase]] | None = None
    ratio: float | None = None
    pseudo_labels: bool = False
    backend: str | None = None
    pretrained: bool = False

    def training_set(self, material: Material) -> TrainingSet:
        """What its segmenters train on.

        Raises:
            UserError: the material lacks something that this arm needs.
        """
        augment = None if self.augment is None else AUGMENTATIONS[self.augment](material.schema)
        pairs: Sequence[ModelCase] = material.synthetic if self.synthetic else ()
        if self.made is not None:
            pairs = alternating(self.made(material), pairs) if self.synthetic else self.made(material)
        share = material.synthetic_share if self.ratio is None else self.ratio / (1 + self.ratio)
        real = material.real if self.real else ()
        exact, finish = self.ratio is not None, material.synthetic_finish
        chosen = TrainingSet(real, pairs, share, augment, exact, synthetic_finish=finish, pretrained=self.pretrained)
        return with_pseudo_labels(chosen, material, self.augment) if self.pseudo_labels else chosen


REAL = Arm(baseline=None)
REAL_CLASSICAL = Arm(baseline="real", augment="classical")
REAL_STRONG = Arm(baseline="real+classical", augment="strong")
COPY_PASTE = Arm(baseline="real+classical", augment="classical", made=copy_paste)
CONTRAST_RANDOM = Arm(baseline="real+classical", augment="classical", made=contrast_random)
VOLUME_MATCHED = Arm(baseline="real+classical", augment="classical", made=volume_matched)
WARP = Arm(baseline="real+classical", augment="classical", made=warp)
SELF_TRAINING = Arm(baseline="real+strong", augment="strong", pseudo_labels=True)
SYNTHETIC_ONLY = Arm(baseline="real+classical", real=False, augment="classical", synthetic=True)
REAL_CLASSICAL_SYNTHETIC = Arm(baseline="real+classical", augment="classical", synthetic=True)
REAL_STRONG_SYNTHETIC = Arm(baseline="real+strong", augment="strong", synthetic=True)
SYNTHETIC_QUARTER, SYNTHETIC_HALF, SYNTHETIC_1, SYNTHETIC_2, SYNTHETIC_4 = (
    replace(REAL_CLASSICAL_SYNTHETIC, ratio=ratio) for ratio in (0.25, 0.5, 1.0, 2.0, 4.0)
)
SELF_TRAINING_SYNTHETIC = Arm(baseline="self_training", augment="strong", synthetic=True, pseudo_labels=True)
ATLASES = Arm(baseline="real+classical", backend="atlas")
GENERATOR_NETWORK = Arm(baseline="real+strong", augment="strong", backend="denoiser")
GENERATOR_START = replace(GENERATOR_NETWORK, baseline="generator_network", pretrained=True)
ALL_TOGETHER = replace(SELF_TRAINING_SYNTHETIC, baseline="self_training+synthetic", made=copy_paste)
ARMS: Table[Arm] = Table("arms", "arm", Arm, key="arms.names")


def check_arms(options: ArmsOptions, batch_size: int, pseudo_share: float = 0.5) -> None:
    """Refuse arms that cannot be compared, and a share that leaves a batch without real or without synthetic volumes.

    Raises:
        UserError: no arm has a baseline to be compared with, or the share does not fit the batch size.
    """
    if not pairs_to_compare(options.names):
        raise UserError(f"arms.names={options.names}: no arm among these is the baseline of another", "add a baseline")
    chosen = [ARMS[name] for name in options.names]
    mixed = [arm for arm in chosen if arm.real and (arm.synthetic or arm.made) and arm.ratio is None]
    if mixed and not 0 < round(batch_size * options.synthetic_share) < batch_size:
        raise UserError(
            f"arms.synthetic_share={options.synthetic_share:g} of segmenter.batch_size={batch_size} leaves no room for "
            "both real and synthetic volumes",
            "raise segmenter.batch_size or move the share towards 0.5",
        )
    room = batch_size * (1 - pseudo_share)
    if any(arm.pseudo_labels for arm in mixed) and not 0 < round(room * options.synthetic_share) < room:
        raise UserError(
            f"arms.synthetic_share={options.synthetic_share:g} of what pseudo.share={pseudo_share:g} leaves of "
            f"segmenter.batch_size={batch_size} leaves no room for both real and synthetic volumes",
            "raise segmenter.batch_size, or leave out the arms with both pseudo-labels and synthetic volumes",
        )


def pairs_to_compare(names: Sequence[str]) -> list[tuple[str, str]]:
    """(arm, baseline) for every arm whose baseline, or the baseline's own baseline and so on, is among `names`."""
    pairs = []
    for name in names:
        baseline = ARMS[name].baseline
        while baseline is not None and baseline not in names:
            baseline = ARMS[baseline].baseline
        if baseline is not None:
            pairs.append((name, baseline))
    return pairs
