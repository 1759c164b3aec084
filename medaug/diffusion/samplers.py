"""Samplers: from noise at t = 1 to a sample at t = 0, with any `denoise(x_t, t) -> x_0`.

Each sampler is a generator that yields x after every step, and an entry of `SAMPLERS`; `sample` runs one to its end.
Samplers do not depend on what the network predicts or how it is guided. In the formulas, a step goes from time t to
time s < t; in the code these are `now` and `then`. A step's weights are Python floats (float64); x keeps its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from medaug.diffusion.process import Process
from medaug.diffusion.spacings import SPACINGS
from medaug.diffusion.windows import Shape, Windows
from medaug.tables import Ranges, Table, check_parameters

Denoise = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...), t (B,) -> x_0 (B, ...)
Noise = Callable[[], Tensor]  # standard normal, of x's shape, dtype and device


LARGEST_FIRST_GROWTH = 50
"""Maximum factor by which the first step may multiply an error of the network; bfloat16 has errors of 1 in 256."""


@dataclass(frozen=True)
class Sampler:
    """An entry of `SAMPLERS`.

    Attributes:
        steps: a generator function `steps(denoise, x, process, times, noise, **options)` that yields x (B, ...) after
            each step from one time to the next. `times` are float64 (N + 1,), strictly decreasing, the last one 0;
            `noise()` returns a new standard normal tensor like x.
        options: the keyword arguments of `steps`, all numbers, each with its valid range.
        defaults: values that sampler=NAME gives to other keys of `sampler`.
        evaluations: the number of evaluations of the denoiser in N steps.
    """

    steps: Callable[..., Iterator[Tensor]]
    options: Ranges = field(default_factory=dict)
    evaluations: Callable[[int], int] = lambda steps: steps
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How a sample is made from noise.

    Attributes:
        name: name of the sampler in `SAMPLERS`.
        steps: number of steps.
        spacing: name of the spacing in `SPACINGS`.
        eta: option of ddim: 0 is deterministic, 1 adds as much noise as ddpm.
        parameters: further options of the sampler, by name.
        overlap: for models of patches, the share of each window that the next one overlaps along each axis, in [0, 1);
            None: half.
    """

    name: str = "dpmpp_2m"
    steps: int = 8
    spacing: str = "trailing"
    eta: float = 0.0
    parameters: Mapping[str, float] = field(default_factory=dict)
    overlap: float | None = None

    @property
    def options(self) -> dict[str, float]:
        """The options that are passed to the sampler."""
        return ({"eta": self.eta} if self.eta else {}) | dict(self.parameters)

    def windows(self, grid: Shape, size: Shape) -> Windows:
        """The windows of a size by which a model of patches samples a grid.

        Raises:
            ValueError: as for `Windows`.
        """
        return Windows(grid, size) if self.overlap is None else Windows(grid, size, self.overlap)

    def check(self, process: Process) -> None:
        """Refuse a sampling that cannot work with a process, and options that the sampler does not read.

        Every sampler works with every process and spacing, with two exceptions. Karras spacing needs a finite
        sigma / alpha, which rectified flow and zero terminal SNR do not have at t = 1. A prediction that divides by
        alpha (epsilon) needs a short first step: x_0 is (x - sigma epsilon) / alpha, so a step from t to s multiplies
        an error of epsilon by about alpha_s / alpha_t. With the cosine schedule, whose alpha is 5e-5 at t = 1, this
        factor is too large with fewer than about 640 steps.

        Raises:
            UserError: an unknown sampler or spacing.
            ValueError: an invalid combination or option, with the remedy.
        """
        check_options(self.name, self.options)
        first, second, *_ = process.alpha(self.times(process)).tolist()
        if process.prediction.divides_by_alpha and second / first > LARGEST_FIRST_GROWTH:
            raise ValueError(
                f"{self.steps} steps of spacing {self.spacing} cannot be used with prediction_type "
                f"{process.prediction.name} and {process.schedule.name}: the first step multiplies the network's error "
                f"by {second / first:.0f}; use spacing karras or more steps, or train with v_prediction"
            )

    def times(self, process: Process) -> Tensor:
        """The start and end times of the steps: float64 (steps + 1,), strictly decreasing from 1 to exactly 0.

        Raises:
            UserError: an unknown spacing.
            ValueError: a number of steps below 1, or a spacing that cannot be used with the process.
        """
        if self.steps < 1:
            raise ValueError(f"num_inference_steps is {self.steps}, but must be at least 1")
        return SPACINGS[self.spacing](process, self.steps)


def check_options(name: str, options: Mapping[str, float]) -> None:
    """Refuse options that the sampler called `name` does not read or that are outside their range.

    Raises:
        UserError: an unknown sampler.
        ValueError: names the option and the remedy.
    """
    check_parameters(f"the sampler {name}", options, SAMPLERS[name].options, _readers)


def _readers(option: str) -> list[str]:
    """The samplers of medaug that read an option."""
    return [name for name in SAMPLERS.own if option in SAMPLERS[name].options]


def safe_spacing(process: Process) -> str:
    """A spacing that can be used with the process even with few steps."""
    return "karras" if process.prediction.divides_by_alpha else "trailing"


@torch.no_grad()
def sample(
    name: str,
    denoise: Denoise,
    x: Tensor,
    process: Process,
    times: Tensor,
    noise: Noise,
    options: Mapping[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Run the sampler called `name` from x (B, ...) at times[0] to times[-1]; returns (B, ...) like x.

    Args:
        name: name of the sampler in `SAMPLERS`.
        denoise: function of x_t (B, ...) and t (B,) that returns x_0 (B, ...).
        x: float32 or float64. If times start at 1: normal noise with standard deviation
            `process.schedule.initial_std`.
        process: process of the denoiser.
        times: (N + 1,), strictly decreasing.
        noise: returns a new standard normal tensor like x at each call.
        options: options of the sampler; None: its defaults.
        progress: called after each step with the number of steps done.

    Raises:
        UserError, ValueError: as for `check_options`.
    """
    options = options or {}
    check_options(name, options)
    for done, state in enumerate(SAMPLERS[name].steps(denoise, x, process, times, noise, **options), start=1):
        x = state
        if progress is not None:
            progress(done)
    return x


def ddim(
    denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise, eta: float = 0.0
) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) epsilon + sqrt(v) z, with v = eta^2 Var[x_s | x_t, x_0].
    eta = 0 is deterministic, and for rectified flow and edm it is Euler's method; eta = 1 is ancestral sampling.
    """
    for now, then in pairwise(_levels(process, times)):
        std = eta * _posterior_std(now, then)
        x0 = denoise(x, now.time(x))
        epsilon = (x - now.alpha * x0) / now.sigma
        x = then.alpha * x0 + math.sqrt(max(then.sigma**2 - std**2, 0.0)) * epsilon
        if std > 0:
            x = x + std * noise()
        yield x


def ddpm(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with the posterior q(x_s | x_t, x_0) of the actual step.

    This is DDIM's step at eta = 1, for any alpha and sigma (Song et al. 2021, section 4.1).
    """
    return ddim(denoise, x, process, times, noise, eta=1.0)


def dpmpp_2m(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), deterministic: `noise` is never called.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D. The second weight is the
    paper's -alpha_s (e^-h - 1), written so that it is finite at alpha_t = 0 and sigma_s = 0.
    D is x_0 extrapolated linearly from the last two predictions over lambda = log(alpha / sigma); h is the length of a
    step in lambda. In three steps D is x_0 itself, so that the step is of first order: the first step, the last one to
    t = 0 (its h is infinite), and one that follows a step from pure noise (the previous h is infinite).
    """

    def step(now: _Level, then: _Level, x: Tensor, d: Tensor) -> Tensor:
        ratio = then.sigma / now.sigma
        return ratio * x + (then.alpha - now.alpha * ratio) * d

    yield from _multistep(denoise, x, process, times, step)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): `dpmpp_2m` for the diffusion SDE; each step adds fresh noise.

    x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z, with D as in `dpmpp_2m` and
    e^-h = (alpha_t sigma_s) / (alpha_s sigma_t). With x_0 instead of D this is the step of `ddpm`.
    """

    def step(now: _Level, then: _Level, x: Tensor, d: Tensor) -> Tensor:
        ratio = then.sigma / now.sigma
        decay = now.alpha / then.alpha * ratio  # e^-h
        x = ratio * decay * x + then.alpha * (1 - decay**2) * d
        std = _posterior_std(now, then)
        return x + std * noise() if std > 0 else x

    yield from _multistep(denoise, x, process, times, step)


def heun(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """Heun's method (Karras et al. 2022, algorithm 1): deterministic, two evaluations per step, one in the last step.

    The probability flow is dx = x_0 d alpha + epsilon d sigma, with the denoiser's x_0 and epsilon at x. Euler's step
    uses both at its start, as `ddim` does. Heun's step uses their means at the start and at the end of Euler's step:

    x_s = x_t + (alpha_s - alpha_t) (x_0 + x_0') / 2 + (sigma_s - sigma_t) (epsilon + epsilon') / 2.

    At alpha = 1 this is the paper's algorithm, for rectified flow the trapezoid rule in t. There is no division by
    alpha, which may be 0. The step to sigma_s = 0, where epsilon' is unknown, is Euler's.
    """
    for now, then in pairwise(_levels(process, times)):
        x0 = denoise(x, now.time(x))
        epsilon = (x - now.alpha * x0) / now.sigma
        ahead = then.alpha * x0 + then.sigma * epsilon
        if then.sigma > 0:
            x0_ahead = denoise(ahead, then.time(x))
            epsilon_ahead = (ahead - then.alpha * x0_ahead) / then.sigma
            ahead = x + (then.alpha - now.alpha) * (x0 + x0_ahead) / 2
            ahead = ahead + (then.sigma - now.sigma) * (epsilon + epsilon_ahead) / 2
        x = ahead
        yield x


DDPM = Sampler(ddpm)
DDIM = Sampler(ddim, {"eta": (0.0, 1.0)})
DPMPP_2M = Sampler(dpmpp_2m)
DPMPP_2M_SDE = Sampler(dpmpp_2m_sde)
HEUN = Sampler(heun, evaluations=lambda steps: 2 * steps - 1)
SAMPLERS: Table[Sampler] = Table("samplers", "sampler", Sampler, key="sampler.name")


@dataclass(frozen=True)
class _Level:
    """A time step with its alpha and sigma."""

    t: float
    alpha: float
    sigma: float

    @property
    def lambda_(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma): -inf for pure noise, inf for a clean image."""
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf

    def time(self, x: Tensor) -> Tensor:
        """t repeated for each sample of x, (B,)."""
        return torch.full((x.shape[0],), self.t, dtype=x.dtype, device=x.device)


def _levels(process: Process, times: Tensor) -> list[_Level]:
    """The levels at the given times, computed in float64 so that differences of nearly equal levels stay accurate."""
    t = times.to(device="cpu", dtype=torch.float64)
    columns = zip(t.tolist(), process.alpha(t).tolist(), process.sigma(t).tolist(), strict=True)
    return [_Level(*column) for column in columns]


def _multistep(
    denoise: Denoise,
    x: Tensor,
    process: Process,
    times: Tensor,
    step: Callable[[_Level, _Level, Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """Yield x after each `step(now, then, x, D)`, where D is x_0 extrapolated over lambda, see `dpmpp_2m`.

    The extrapolation is at most as long as the previous step (a weight of at most 1): in a step much longer than the
    previous one, as uniform spacing has at its end, the formula would be unstable.
    """
    x0_before, h_before = x, math.inf  # the first step has no predecessor: its weight below is 0
    for now, then in pairwise(_levels(process, times)):
        h = then.lambda_ - now.lambda_
        weight = min(h / (2 * h_before), 1.0) if math.isfinite(h) else 0.0
        x0 = denoise(x, now.time(x))
        x = step(now, then, x, x0 + weight * (x0 - x0_before))
        x0_before, h_before = x0, h
        yield x


def _posterior_std(now: _Level, then: _Level) -> float:
    """Standard deviation of q(x_s | x_t, x_0), sigma_s sigma_(t|s) / sigma_t (Kingma et al. 2021, appendix A)."""
    variance_between = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return then.sigma / now.sigma * math.sqrt(max(variance_between, 0.0))
