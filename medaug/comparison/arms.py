"""What each arm of the benchmark trains on. All else is equal: network, steps, batch size, seeds."""

from __future__ import annotations

from collections.abc import Sequence

from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.options import ArmsOptions
from medaug.segmentation.segmenter import Diet

ARMS = ("real", "real+classical", "real+classical+synthetic")


def check_arms(options: ArmsOptions, batch_size: int) -> None:
    """Refuse unknown or repeated arms, fewer than two, and a share of which nothing, or all, of a batch would be.

    Raises:
        UserError: as said.
    """
    if unknown := [name for name in options.names if name not in ARMS]:
        raise UserError(f"arms.names: {unknown[0]} is not one of {', '.join(ARMS)}")
    if len(set(options.names)) != len(options.names) or len(options.names) < 2:
        raise UserError(f"arms.names={options.names}: at least two different arms are needed to compare")
    if not 0 < options.synthetic_share < 1:
        raise UserError(f"arms.synthetic_share={options.synthetic_share:g}: a number between 0 and 1 is needed")
    with_synthetic = [name for name in options.names if "synthetic" in name.split("+")]
    if with_synthetic and not 0 < round(batch_size * options.synthetic_share) < batch_size:
        raise UserError(
            f"arms.synthetic_share={options.synthetic_share:g} of segmenter.batch_size={batch_size} leaves no room for "
            "both real and synthetic volumes; raise segmenter.batch_size or move the share towards 0.5"
        )


def diet(arm: str, real: Sequence[ModelCase], synthetic: Sequence[ModelCase], synthetic_share: float) -> Diet:
    """The training material of one arm."""
    parts = arm.split("+")
    return Diet(real, synthetic if "synthetic" in parts else (), synthetic_share, "classical" in parts)


def pairs_to_compare(names: Sequence[str]) -> list[tuple[str, str]]:
    """(arm, baseline) for every arm after the first: each against the one before it, which lacks one ingredient."""
    return [(names[i], names[i - 1]) for i in range(1, len(names))]
