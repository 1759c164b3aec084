"""Samplers: from noise at t = 1 to a sample at t = 0, over any `denoise(x_t, t) -> x_0`.

Each sampler is a generator that yields x after every step; `sample` runs one to its end. Samplers never ask
what the network predicts or how it is guided. In their formulas a step goes from time t to time s < t; in the
code these are `now` and `then`. A step's weights are Python floats (float64), x keeps its own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from medaug.diffusion.process import Process

Denoise = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...), t (B,) -> x_0 (B, ...)
Noise = Callable[[], Tensor]  # standard normal, of x's shape, dtype and device
Sampler = Callable[[Denoise, Tensor, Process, Tensor, Noise], Iterator[Tensor]]


def times(num_inference_steps: int, device: torch.device | str = "cpu") -> Tensor:
    """The times 1 - k/N, k = 0 ... N, between which N steps go: float64 (N + 1,), from 1 down to exactly 0.

    This is "trailing" spacing, which starts at the noisiest time (Lin et al. 2024, section 3.3).
    Raises ValueError when num_inference_steps is below 1.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, but must be at least 1")
    steps_left = torch.arange(num_inference_steps, -1, -1, dtype=torch.float64, device=device)
    return steps_left / num_inference_steps


@torch.no_grad()
def sample(
    name: str,
    denoise: Denoise,
    x: Tensor,
    process: Process,
    times: Tensor,
    noise: Noise,
    eta: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Run the sampler called `name` from x (B, ...) at times[0] to times[-1]; returns (B, ...) like x.

    x: float32 or float64, standard normal when times start at 1. times: (N + 1,), strictly decreasing.
    noise: called for each fresh standard normal tensor like x. eta: for ddim alone, see there.
    progress: called after each step with the number of steps done.
    Raises ValueError for an unknown name, and for an eta that the sampler would not read.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if eta != 0 and name != "ddim":
        raise ValueError(f"eta is {eta:g}, but only the sampler ddim reads it; leave it at 0 for {name}")
    sampler = partial(ddim, eta=eta) if name == "ddim" else SAMPLERS[name]
    for done, state in enumerate(sampler(denoise, x, process, times, noise), start=1):
        x = state
        if progress is not None:
            progress(done)
    return x


def ddim(
    denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise, eta: float = 0.0
) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) epsilon + sqrt(v) z, with v = eta^2 Var[x_s | x_t, x_0].
    eta = 0 is deterministic, and on rectified flow it is Euler's method; eta = 1 is ancestral sampling.
    Raises ValueError for eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}, but must lie in [0, 1]")
    for now, then in pairwise(_levels(process, times)):
        std = eta * _posterior_std(now, then)
        x0 = denoise(x, now.time(x))
        epsilon = (x - now.alpha * x0) / now.sigma
        x = then.alpha * x0 + math.sqrt(max(then.sigma**2 - std**2, 0.0)) * epsilon
        if std > 0:
            x = x + std * noise()
        yield x


def ddpm(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), by the posterior of the stride really taken.

    That posterior, q(x_s | x_t, x_0), is DDIM's step at eta = 1 for any alpha and sigma (Song et al. 2021,
    section 4.1).
    """
    return ddim(denoise, x, process, times, noise, eta=1.0)


def dpmpp_2m(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), deterministic: `noise` is never called.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D. The second weight is the
    paper's -alpha_s (e^-h - 1), written so that it stays finite at alpha_t = 0 and sigma_s = 0.
    D extrapolates x_0 from the last two predictions over lambda = log(alpha / sigma), in which a step has
    length h. On the first step, on the last one to t = 0 (h infinite) and after one that left pure noise
    (h behind infinite), D is x_0 itself: a first-order step.
    """
    x0_behind, h_behind = x, math.inf  # nothing behind the first step: its weight below is 0
    for now, then in pairwise(_levels(process, times)):
        h = then.lambda_ - now.lambda_
        weight = h / (2 * h_behind) if math.isfinite(h) else 0.0
        x0 = denoise(x, now.time(x))
        extrapolated = x0 + weight * (x0 - x0_behind)
        ratio = then.sigma / now.sigma
        x = ratio * x + (then.alpha - now.alpha * ratio) * extrapolated
        x0_behind, h_behind = x0, h
        yield x


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


@dataclass(frozen=True)
class _Level:
    """A time of the sampling grid with its alpha and sigma."""

    t: float
    alpha: float
    sigma: float

    @property
    def lambda_(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma): -inf for pure noise, inf when clean."""
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf

    def time(self, x: Tensor) -> Tensor:
        """t for each sample of x, (B,)."""
        return torch.full((x.shape[0],), self.t, dtype=x.dtype, device=x.device)


def _levels(process: Process, times: Tensor) -> list[_Level]:
    """The sampling grid in float64, where differences of nearly equal levels keep their digits."""
    t = times.to(device="cpu", dtype=torch.float64)
    columns = zip(t.tolist(), process.alpha(t).tolist(), process.sigma(t).tolist(), strict=True)
    return [_Level(*column) for column in columns]


def _posterior_std(now: _Level, then: _Level) -> float:
    """Deviation of q(x_s | x_t, x_0), sigma_s sigma_(t|s) / sigma_t (Kingma et al. 2021, appendix A)."""
    variance_between = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return then.sigma / now.sigma * math.sqrt(max(variance_between, 0.0))
