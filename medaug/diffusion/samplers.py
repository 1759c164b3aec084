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
from medaug.diffusion.schedules import RHO

Denoise = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...), t (B,) -> x_0 (B, ...)
Noise = Callable[[], Tensor]  # standard normal, of x's shape, dtype and device
Sampler = Callable[[Denoise, Tensor, Process, Tensor, Noise], Iterator[Tensor]]

SPACINGS = ("trailing", "uniform", "karras")


LARGEST_FIRST_GROWTH = 50
"""By how much the first step may multiply an error of the network: bfloat16 rounds to 1 in 256."""


def check(
    process: Process,
    name: str,
    spacing: str = "trailing",
    eta: float = 0.0,
    num_inference_steps: int | None = None,
) -> None:
    """Refuse a sampler that cannot go with a process, and options that it would not read.

    Every sampler goes with every process at every spacing, but for karras spacing where sigma / alpha has no largest
    value (rectified flow, zero terminal SNR), and for epsilon where the first step is too long: x_0 is
    (x - sigma epsilon) / alpha, so that a step from t to s multiplies an error of epsilon by about alpha_s / alpha_t.
    From cosine's alpha of 5e-5 on, that is too much in fewer than about 640 steps.
    Without `num_inference_steps` their number is not looked at.
    Raises ValueError, with the way out.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is unknown; choose one of {', '.join(SPACINGS)}")
    if eta != 0 and name != "ddim":
        raise ValueError(f"eta is {eta:g}, but only the sampler ddim reads it; leave it at 0 for {name}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}, but must lie in [0, 1]")
    if spacing == "karras" and process.ends_in_pure_noise:
        what = f"{process.noise_schedule}{' with zero_terminal_snr' if process.zero_terminal_snr else ''}"
        raise ValueError(
            f"spacing karras cannot go with {what}: sigma / alpha is infinite at t = 1; use trailing or uniform"
        )
    if num_inference_steps is None:
        return
    first, second, *_ = process.alpha(spaced_times(process, num_inference_steps, spacing)).tolist()
    if process.prediction_type == "epsilon" and second / first > LARGEST_FIRST_GROWTH:
        raise ValueError(
            f"{num_inference_steps} steps of spacing {spacing} cannot go with prediction_type epsilon and "
            f"{process.noise_schedule}: the first one multiplies the network's error by {second / first:.0f}; use "
            "spacing karras or more steps, or train with v_prediction"
        )


def safe_spacing(process: Process) -> str:
    """A spacing that goes with the process at few steps."""
    return "karras" if process.prediction_type == "epsilon" else "trailing"


def times(num_inference_steps: int) -> Tensor:
    """The times 1 - k/N, k = 0 ... N, between which N steps go: float64 (N + 1,), from 1 down to exactly 0.

    This is "trailing" spacing, which starts at the noisiest time (Lin et al. 2024, section 3.3).
    Raises ValueError when num_inference_steps is below 1.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, but must be at least 1")
    return torch.arange(num_inference_steps, -1, -1, dtype=torch.float64) / num_inference_steps


def spaced_times(process: Process, num_inference_steps: int, spacing: str = "trailing") -> Tensor:
    """The times between which N steps go: float64 (N + 1,), strictly decreasing from 1 to exactly 0.

    trailing  1 - k/N, see `times`
    uniform   N times evenly from 1 to the least time that the process is trained at, then 0
    karras    N levels of sigma / alpha, evenly spaced in their seventh root from that of t = 1 to that of the least
              time (Karras et al. 2022, eq. 5), then 0

    The first two are shifted where the process is (`Process.shifted`).
    Raises ValueError as `times` and `check` do.
    """
    check(process, "ddim", spacing)
    trailing = times(num_inference_steps)
    if spacing == "trailing":
        return process.shifted(trailing)
    ends = torch.tensor([1.0, process.schedule.least_time], dtype=torch.float64)
    if spacing == "karras":
        ends = (process.sigma(ends) / process.alpha(ends)) ** (1 / RHO)
    first, last = ends.tolist()
    grid = torch.linspace(first, last, num_inference_steps, dtype=torch.float64)
    grid = _time_of(process, grid**RHO) if spacing == "karras" else process.shifted(grid)
    return torch.cat([torch.ones(1, dtype=torch.float64), grid[1:], torch.zeros(1, dtype=torch.float64)])


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

    x: float32 or float64; where times start at 1, normal with deviation `process.schedule.initial_std`.
    times: (N + 1,), strictly decreasing. noise: called for each fresh standard normal tensor like x.
    eta: for ddim alone, see there. progress: called after each step with the number of steps done.
    Raises ValueError as `check`.
    """
    check(process, name, eta=eta)
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
    eta = 0 is deterministic, and on rectified flow and edm it is Euler's method; eta = 1 is ancestral sampling.
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

    def step(now: _Level, then: _Level, x: Tensor, d: Tensor) -> Tensor:
        ratio = then.sigma / now.sigma
        return ratio * x + (then.alpha - now.alpha * ratio) * d

    yield from _multistep(denoise, x, process, times, step)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022), the same for the diffusion SDE: each step adds fresh noise.

    x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z, with D as in `dpmpp_2m` and
    e^-h = (alpha_t sigma_s) / (alpha_s sigma_t). With x_0 in place of D it would be the step of `ddpm`.
    """

    def step(now: _Level, then: _Level, x: Tensor, d: Tensor) -> Tensor:
        ratio = then.sigma / now.sigma
        decay = now.alpha / then.alpha * ratio  # e^-h
        x = ratio * decay * x + then.alpha * (1 - decay**2) * d
        std = _posterior_std(now, then)
        return x + std * noise() if std > 0 else x

    yield from _multistep(denoise, x, process, times, step)


def heun(denoise: Denoise, x: Tensor, process: Process, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """Heun's method (Karras et al. 2022, algorithm 1), deterministic, two evaluations a step but for one to t = 0.

    The probability flow is dx = x_0 d alpha + epsilon d sigma, x_0 and epsilon being what the denoiser says at x.
    Euler's step takes both from where it starts; it is that of `ddim`. Heun's takes the mean of them there and where
    Euler's leads:

    x_s = x_t + (alpha_s - alpha_t) (x_0 + x_0') / 2 + (sigma_s - sigma_t) (epsilon + epsilon') / 2.

    At alpha = 1 this is the paper's algorithm, on rectified flow the trapezoid rule in t. Nothing is divided by alpha,
    which may be 0; to sigma_s = 0, where epsilon' is unknown, Euler's step is taken.
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


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
}


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


def _multistep(
    denoise: Denoise,
    x: Tensor,
    process: Process,
    times: Tensor,
    step: Callable[[_Level, _Level, Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """x after each `step(now, then, x, D)`, D being x_0 extrapolated over lambda as `dpmpp_2m` says.

    Nowhere is it extrapolated further than one step behind: at a much longer step than the last one, as uniform
    spacing has towards its end, the formula is unstable.
    """
    x0_behind, h_behind = x, math.inf  # nothing behind the first step: its weight below is 0
    for now, then in pairwise(_levels(process, times)):
        h = then.lambda_ - now.lambda_
        weight = min(h / (2 * h_behind), 1.0) if math.isfinite(h) else 0.0
        x0 = denoise(x, now.time(x))
        x = step(now, then, x, x0 + weight * (x0 - x0_behind))
        x0_behind, h_behind = x0, h
        yield x


def _time_of(process: Process, ratio: Tensor) -> Tensor:
    """The times at which sigma / alpha has the given values, float64 of any shape, by bisection."""
    low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
    for _ in range(60):
        middle = (low + high) / 2
        below = process.sigma(middle) < ratio * process.alpha(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _posterior_std(now: _Level, then: _Level) -> float:
    """Deviation of q(x_s | x_t, x_0), sigma_s sigma_(t|s) / sigma_t (Kingma et al. 2021, appendix A)."""
    variance_between = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return then.sigma / now.sigma * math.sqrt(max(variance_between, 0.0))
