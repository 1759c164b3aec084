"""Classifier-free guidance (Ho & Salimans 2022): one denoiser made from two conditions."""

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
    """How strongly samples are guided, when, and away from what.

    Attributes:
        scale: 1 is the conditional model, 0 the negative condition alone, above 1 is guidance.
        interval: the range of times in [0, 1], ends included, in which guidance is applied; None: at all times. Outside
            it the conditional model is used alone (Kynkäänniemi et al. 2024).
        rescale: phi in [0, 1], how far the standard deviation of each guided x_0 is moved back to that of
            x_0(condition), over all axes but the batch (Lin et al. 2024, eq. 15 and 16; the paper applies it to the
            network's output).
        negative: class indices. Guidance moves away from the same mask without these classes; empty: away from the
            null condition.

    Raises:
        ValueError: the interval is not increasing within [0, 1], or rescale is outside [0, 1].
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    negative: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"guidance_interval is [{self.interval[0]:g}, {self.interval[1]:g}], but must be two increasing times "
                "within [0, 1]"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.rescale:g}, but must lie in [0, 1]")


NO_GUIDANCE = Guidance()
"""The conditional model without guidance."""


def guided(
    denoise: Callable[[Tensor, Tensor, Condition], Tensor],
    condition: Condition,
    negative: Condition,
    guidance: Guidance,
) -> Denoise:
    """The denoiser x_0(negative) + scale * (x_0(condition) - x_0(negative)).

    The scale is 1 + w of the paper's eq. 6. The paper mixes epsilon; that is equivalent, because x_0 is affine in
    epsilon at a given x_t. Both branches are evaluated in one forward pass with twice the batch; a branch with weight 0
    is not evaluated.

    Args:
        denoise: function of x_t (B, ...), t (B,) and a condition that returns x_0 (B, ...).
        condition: a tensor (B, ...) or a (named) tuple of tensors.
        negative: the condition that guidance moves away from: the null condition, or that of another mask. Its shapes
            are those of `condition`.
        guidance: scale, interval and rescale; `negative` is not used here.

    Raises:
        ValueError: the shapes of the conditions differ.
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
    """The two conditions as one condition with twice the batch."""
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
