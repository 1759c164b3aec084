"""Inpainting without training: any model of whole images can generate a region of a given image.

The known part replaces that of the denoiser's x_0 (the null-space form of Wang et al. 2023, DDNM, eq. 13, for a mask).
This is done in image space, so that it works with any codec. RePaint (Lugmayr et al. 2022, eq. 8) does it at x_t
instead; in both, each x_t contains the known part at its own noise level. Repeating steps makes the inpainted region
consistent with the known part (RePaint, section 4.2).
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
    """The known part of each sample, and the region to inpaint.

    Attributes:
        known: (B, M, X, Y, Z) images; their values inside the region are ignored.
        region: (B, 1, X, Y, Z) bool, the voxels to inpaint.
        resample: how often each step is done, at least 1; see `sample_from_noise`.
    """

    known: Tensor
    region: Tensor
    resample: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError if resample is below 1."""
        if self.resample < 1:
            raise ValueError(f"resample is {self.resample}, but each step must be done at least once")

    def paste(self, image: Tensor) -> Tensor:
        """The image (B, M, X, Y, Z) inside the region, and the known image outside."""
        return torch.where(self.region, image, self.known)

    def on(self, device: str) -> Inpainting:
        """The same on a device."""
        return Inpainting(self.known.to(device), self.region.to(device), self.resample)

    def impose(
        self, denoise: Denoise, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
    ) -> Denoise:
        """The denoiser encode(paste(decode(x_0))), which any sampler can use.

        Args:
            denoise: denoiser of a model of whole images, in code space.
            encode, decode: functions from images to codes and back, inverse to each other.
        """

        def denoise_inpainted(x: Tensor, t: Tensor) -> Tensor:
            return encode(self.paste(decode(denoise(x, t))))

        return denoise_inpainted


def sample_from_noise(
    sampling: Sampling,
    denoise: Denoise,
    process: Process,
    noise: Noise,
    resample: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample from noise, doing each step from t to s < t `resample` times.

    Between the repetitions x goes back from s to t by the forward process, x_t = a x_s + sqrt(sigma_t^2 - a^2
    sigma_s^2) z with a = alpha_t / alpha_s (RePaint, algorithm 1, line 10). The next repetition thus starts from a
    result that contains the known part and the region, which makes the two consistent. With resample above 1 each step
    is done by itself, so that multistep samplers are of first order.

    Args:
        sampling: sampler, steps and spacing.
        denoise: function of x_t (B, ...) and t (B,) that returns x_0 (B, ...).
        process: process of the denoiser.
        noise: returns standard normal noise (B, ...); called for x at t = 1 and whenever a step needs fresh noise.
        resample: number of repetitions of each step, at least 1.
        progress: called after each step with the number of steps done.

    Raises:
        UserError, ValueError: as for `Sampling.times` and `sample`.
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
