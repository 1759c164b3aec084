"""Classifier-free guidance (Ho & Salimans 2022): one denoiser made of two conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from medaug.diffusion.samplers import Denoise

Condition = TypeVar("Condition", bound=Tensor | tuple[Tensor, ...])


def guided(
    denoise: Callable[[Tensor, Tensor, Condition], Tensor],
    condition: Condition,
    negative: Condition,
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoise:
    """The denoiser x_0(negative) + scale * (x_0(condition) - x_0(negative)).

    Scale 1 is the conditional model, 0 the negative one, above 1 is guidance. The scale is 1 + w of the
    paper's eq. 6, which mixes epsilon: the same thing, since x_0 is affine in epsilon at a given x_t. Both
    branches go through one forward of twice the batch; where one has no weight it is not run.

    denoise: x_t (B, ...), t (B,) and a condition to x_0 (B, ...).
    condition, negative: a tensor (B, ...) or a (named) tuple of them, of one shape. The negative one is what guidance
    leads away from: the null condition, or that of another mask. What they mean is the network's business.
    interval: times between which, ends included, there is guidance; outside it the conditional model alone is run
    (Kynkäänniemi et al. 2024).
    rescale: phi in [0, 1], how far each sample of the guided x_0 is brought back to the standard deviation of
    x_0(condition), taken over all but the batch (Lin et al. 2024, eq. 15 and 16, which the paper applies to the
    network's output).

    Raises ValueError when the shapes differ, and as `check_guidance`.
    """
    check_guidance(interval, rescale)
    both = _batch(negative, condition)

    def denoise_guided(x: Tensor, t: Tensor) -> Tensor:
        low, high = interval or (0.0, 1.0)
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


def check_guidance(interval: tuple[float, float] | None, rescale: float) -> None:
    """Raise ValueError for an interval that does not rise within [0, 1], and for a rescale outside [0, 1]."""
    if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(
            f"guidance_interval is [{interval[0]:g}, {interval[1]:g}], but must be two rising times within [0, 1]"
        )
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale is {rescale:g}, but must lie in [0, 1]")
