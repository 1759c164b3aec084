"""Classifier-free guidance (Ho & Salimans 2022): one denoiser made of two conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from medaug.diffusion.samplers import Denoise

Condition = TypeVar("Condition", bound=Tensor | tuple[Tensor, ...])


@dataclass(frozen=True)
class Guidance:
    """How strongly, and away from what, samples are guided.

    Attributes:
        scale: 1 is the conditional model, 0 the negative one, above 1 is guidance.
        interval: times in [0, 1] between which, ends included, there is guidance; None: at all times. Outside it the
            conditional model runs alone (Kynkäänniemi et al. 2024).
        rescale: phi in [0, 1], how far each sample of the guided x_0 is brought back to the standard deviation of
            x_0(condition), taken over all axes but the batch (Lin et al. 2024, eq. 15 and 16, which the paper applies
            to the network's output).
        negative: class indices. Guidance leads away from the same mask without these classes; empty: from the null
            condition.

    Raises:
        ValueError: an interval that does not rise within [0, 1], or a rescale outside [0, 1].
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    negative: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"guidance_interval is [{self.interval[0]:g}, {self.interval[1]:g}], but must be two rising times "
                "within [0, 1]"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.rescale:g}, but must lie in [0, 1]")


NO_GUIDANCE = Guidance()
"""The conditional model alone."""


def guided(
    denoise: Callable[[Tensor, Tensor, Condition], Tensor],
    condition: Condition,
    negative: Condition,
    guidance: Guidance,
) -> Denoise:
    """The denoiser x_0(negative) + scale * (x_0(condition) - x_0(negative)).

    The scale is 1 + w of the paper's eq. 6, which mixes epsilon: the same thing, since x_0 is affine in epsilon at a
    given x_t. Both branches go through one forward pass of twice the batch; a branch without weight is not run.

    denoise: x_t (B, ...), t (B,) and a condition to x_0 (B, ...).
    condition, negative: a tensor (B, ...) or a (named) tuple of them, of one shape. Guidance leads away from the
    negative one: the null condition, or the condition of another mask. `guidance.negative` is not read here.

    Raises ValueError when the shapes differ.
    """
    scale, rescale = guidance.scale, guidance.rescale
    low, high = guidance.interval or (0.0, 1.0)
    both = _batch(negative, condition)

    def denoise_guided(x: Tensor, t: Tensor) -> Tensor:
        inside = ((t >= low) & (t <= high)).view(-1, *[1] * (x.ndim - 1))
        if scale == 1 or not inside.any():
            return denoise(x, t, condition)
        if scale == 0 and rescale == 0 and inside.all():
            return denoise(x, t, negative)
        away, towards = denoise(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        mixed = away + scale * (towards - away)
        if rescale > 0:
            dims = tuple(range(1, x.ndim))
            ratio = towards.std(dims, keepdim=True) / mixed.std(dims, keepdim=True)
            mixed = rescale * (mixed * ratio) + (1 - rescale) * mixed
        return torch.where(inside, mixed, towards)

    return denoise_guided


def _batch(negative: Condition, condition: Condition) -> Condition:
    """The two conditions as one of twice the batch."""
    if isinstance(negative, Tensor) and isinstance(condition, Tensor):
        if negative.shape != condition.shape:
            raise ValueError(
                "condition and negative condition differ in shape: "
                f"{tuple(condition.shape)} and {tuple(negative.shape)}"
            )
        return cast(Condition, torch.cat([negative, condition]))
    parts = [_batch(a, b) for a, b in zip(negative, condition, strict=True)]
    make = getattr(type(condition), "_make", tuple)  # a named tuple keeps its names
    return cast(Condition, make(parts))
