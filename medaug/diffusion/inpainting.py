"""Inpainting without training: any model of whole images redraws a region of a given image.

The known part is imposed on the denoiser's x_0 (the null-space form of Wang et al. 2023, DDNM, eq. 13, for a mask), in
image space, so that it holds for any codec. RePaint (Lugmayr et al. 2022, eq. 8) imposes it on x_t; both give every
x_t the known part at its own noise level. Going back in time makes the redrawn region fit the known part (RePaint,
section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from medaug.diffusion.process import Process
from medaug.diffusion.samplers import Denoise, Noise, Sampling, sample


@dataclass(frozen=True)
class Inpainting:
    """The known part of each sample, and the region to redraw.

    Attributes:
        known: (B, M, X, Y, Z) images; their values within the region are ignored.
        region: (B, 1, X, Y, Z) bool, the voxels to redraw.
        resample: how often each step is run, at least 1; see `draw`.
    """

    known: Tensor
    region: Tensor
    resample: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for a number of steps below 1."""
        if self.resample < 1:
            raise ValueError(f"resample is {self.resample}, but each step must run at least once")

    def paste(self, image: Tensor) -> Tensor:
        """Image (B, M, X, Y, Z) within the region, the known one elsewhere."""
        return torch.where(self.region, image, self.known)

    def impose(
        self, denoise: Denoise, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
    ) -> Denoise:
        """The denoiser encode(paste(decode(x_0))), for any sampler.

        Args:
            denoise: of a model of whole images, in code space.
            encode, decode: between images and code, inverse to each other.
        """

        def denoise_inpainted(x: Tensor, t: Tensor) -> Tensor:
            return encode(self.paste(decode(denoise(x, t))))

        return denoise_inpainted


def draw(
    sampling: Sampling,
    denoise: Denoise,
    process: Process,
    noise: Noise,
    resample: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """A sample from noise, with each step from t to s < t taken `resample` times.

    Between the repeats x goes back from s to t by the forward process, x_t = a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) z
    with a = alpha_t / alpha_s (RePaint, algorithm 1, line 10): the next repeat starts from the last one's result, known
    part and region together, and so draws a region that fits. With resample above 1 each step is run by itself:
    multistep samplers are then of first order.

    Args:
        sampling: sampler, steps and spacing.
        denoise: x_t (B, ...), t (B,) -> x_0 (B, ...).
        process: of the denoiser.
        noise: called for x at t = 1 and for each fresh standard normal tensor (B, ...).
        resample: at least 1.
        progress: called after each step with the number of steps done.

    Raises:
        UserError, ValueError: as `Sampling.check`.
    """
    name, options = sampling.name, sampling.options
    x, times = process.schedule.initial_std * noise(), sampling.times(process)
    if resample == 1:
        return sample(name, denoise, x, process, times, noise, options, progress)
    for done, step in enumerate(pairwise(times.double()), start=1):
        levels = torch.stack(step)
        (alpha_t, alpha_s), (sigma_t, sigma_s) = process.alpha(levels).tolist(), process.sigma(levels).tolist()
        back = alpha_t / alpha_s
        std = math.sqrt(max(sigma_t**2 - (back * sigma_s) ** 2, 0.0))
        x = sample(name, denoise, x, process, levels, noise, options)
        for _ in range(resample - 1):
            x = sample(name, denoise, back * x + std * noise(), process, levels, noise, options)
        if progress is not None:
            progress(done)
    return x
