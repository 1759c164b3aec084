"""Classifier-free guidance (Ho & Salimans 2022): one denoiser made of two conditions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medaug.diffusion.samplers import Denoise

ConditionalDenoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t, t, condition -> x_0, each (B, ...)


def guided(denoise: ConditionalDenoise, condition: Tensor, null_condition: Tensor, scale: float) -> Denoise:
    """The denoiser x_0(null) + scale * (x_0(condition) - x_0(null)).

    Scale 1 is the conditional model, 0 the null model, above 1 is guidance. The scale is 1 + w of the
    paper's eq. 6, which mixes epsilon: the same thing, since x_0 is affine in epsilon at a given x_t. Both
    branches go through one forward of twice the batch; at scale 0 and 1 the one without weight is not run.

    condition, null_condition: (B, ...), of one shape; what they mean is the network's business.
    Raises ValueError when the shapes differ.
    """
    if condition.shape != null_condition.shape:
        raise ValueError(
            f"condition and null condition differ in shape: {tuple(condition.shape)} and {tuple(null_condition.shape)}"
        )
    if scale in (0, 1):
        only = condition if scale == 1 else null_condition
        return lambda x, t: denoise(x, t, only)
    both = torch.cat([null_condition, condition])

    def denoise_guided(x: Tensor, t: Tensor) -> Tensor:
        null, conditional = denoise(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return null + scale * (conditional - null)

    return denoise_guided
