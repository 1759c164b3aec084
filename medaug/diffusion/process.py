"""The forward process x_t = alpha(t) x_0 + sigma(t) epsilon, and what a network learns to predict about it.

Time t runs over [0, 1]: t = 0 is clean (alpha 1, sigma 0), t = 1 the noisiest. epsilon is standard normal.
Arithmetic is done in float32 whatever the network's precision; float64 stays float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NOISE_SCHEDULES = ("linear", "cosine", "rectified_flow")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last step of the cosine schedule finite


@dataclass(frozen=True)
class Process:
    """A noise schedule and the quantity that the network predicts.

    noise_schedule
        "linear"          variance preserving, beta from 1e-4 to 0.02 (Ho et al. 2020, section 4)
        "cosine"          variance preserving, alpha_bar = cos^2 (Nichol & Dhariwal 2021, eq. 17)
        "rectified_flow"  alpha = 1 - t, sigma = t (Liu et al. 2022, eq. 1)
    prediction_type, for any schedule
        "epsilon"         the noise (Ho et al. 2020)
        "sample"          x_0
        "v_prediction"    alpha epsilon - sigma x_0 (Salimans & Ho 2022, appendix D)
        "flow"            epsilon - x_0 (Liu et al. 2022; the velocity dx/dt of rectified flow)
    num_train_timesteps
        T, the number of noise levels of a variance-preserving schedule: time i of its table (0 <= i < T)
        sits at t = (i + 1) / T, and log alpha_bar is linear in between. Rectified flow has no table.

    time_shift
        s > 0, for rectified flow: times are drawn, and sampled, at s t / (1 + (s - 1) t), which divides alpha / sigma
        by s (Esser et al. 2024, eq. 23). Large volumes want s above 1: many voxels that agree show their common shape
        through noise that hides each of them, so that shape is settled at noisier times.

    Raises ValueError for unknown names, for a T that the schedule cannot have, and for epsilon prediction
    with rectified flow: x_1 is then epsilon itself, and knowing epsilon says nothing about x_0.
    """

    noise_schedule: str
    prediction_type: str
    num_train_timesteps: int = 1000
    time_shift: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is trained with it."""
        _check_name("noise_schedule", self.noise_schedule, NOISE_SCHEDULES)
        _check_name("prediction_type", self.prediction_type, PREDICTION_TYPES)
        if self.noise_schedule == "linear" and self.num_train_timesteps <= 20:
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps}, but the linear schedule needs more than "
                "20: its last beta is 20 / num_train_timesteps and must stay below 1"
            )
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}, but must be at least 1")
        if self.time_shift <= 0 or (self.time_shift != 1 and self.noise_schedule != "rectified_flow"):
            raise ValueError(
                f"time_shift is {self.time_shift:g}, but must be above 0, and 1 with {self.noise_schedule}"
            )
        if self.noise_schedule == "rectified_flow" and self.prediction_type == "epsilon":
            raise ValueError(
                "prediction_type epsilon cannot go with noise_schedule rectified_flow: alpha is 0 at t = 1, "
                "so x_0 cannot be recovered there; use flow, v_prediction or sample"
            )

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of x_0 at times t in [0, 1]: same shape, falling from 1; float32, or float64 if t is."""
        t = t.to(arithmetic_dtype(t))
        if self.noise_schedule == "rectified_flow":
            return 1 - t
        return torch.exp(self._log_alpha_bar(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at times t: shape and precision as for alpha, rising from 0."""
        t = t.to(arithmetic_dtype(t))
        if self.noise_schedule == "rectified_flow":
            return t
        # 1 - alpha^2 would cancel near t = 0
        return torch.expm1(self._log_alpha_bar(t)).abs().sqrt()

    def training_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times to train at, float32 (n,), on the generator's device.

        Uniform over the T table times for the variance-preserving schedules (Ho et al. 2020, algorithm 1);
        logit-normal(0, 1), shifted, for rectified flow (Esser et al. 2024, section 3.1).
        """
        if self.noise_schedule == "rectified_flow":
            return self.shifted(torch.randn(n, generator=generator, device=generator.device).sigmoid())
        steps = self.num_train_timesteps
        return torch.randint(1, steps + 1, (n,), generator=generator, device=generator.device) / steps

    def shifted(self, t: Tensor) -> Tensor:
        """Times s t / (1 + (s - 1) t) for t in [0, 1], s being `time_shift`: 0 and 1 stay where they are."""
        return self.time_shift * t / (1 + (self.time_shift - 1) * t)

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        """log alpha(t)^2 of a variance-preserving schedule, by linear interpolation of its table."""
        table = _log_alpha_bar_table(self.noise_schedule, self.num_train_timesteps, t.dtype, t.device)
        position = t * self.num_train_timesteps
        below = position.long().clamp(0, self.num_train_timesteps - 1)
        return torch.lerp(table[below], table[below + 1], position - below)


def add_noise(process: Process, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) noise, the marginal q(x_t | x_0) (Ho et al. 2020, eq. 4).

    x0 and noise: (B, ...); t: (B,) times in [0, 1]. Returns (B, ...) in float32 (float64 if x0 is).
    """
    alpha, sigma = _alpha_sigma(process, t, x0)
    return alpha * x0 + sigma * noise


def training_target(process: Process, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network is to output at x_t = add_noise(process, x0, noise, t), by `process.prediction_type`.

    Shapes and precision as in `add_noise`.
    """
    alpha, sigma = _alpha_sigma(process, t, x0)
    of_noise, of_x0 = _target_weights(process, alpha, sigma)
    return of_noise * noise + of_x0 * x0


def predicted_sample(process: Process, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 from the network's output at x_t: the inverse of `training_target`.

    Solves the pair  x_t = alpha x_0 + sigma epsilon,  output = p epsilon + q x_0  for x_0. There is one
    solution at every t for sample, v_prediction and flow. Epsilon divides by alpha, which never is 0 on a
    variance-preserving schedule, but small near t = 1, where that magnifies the network's error.
    Shapes and precision as in `add_noise`.
    """
    if process.prediction_type == "sample":  # the pair is 0 / 0 at sigma = 0
        return output.to(arithmetic_dtype(x_t))
    alpha, sigma = _alpha_sigma(process, t, x_t)
    p, q = _target_weights(process, alpha, sigma)
    return (p * x_t - sigma * output) / (alpha * p - sigma * q)


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype that the process computes in when given x: float32, or float64 if x is."""
    return torch.promote_types(x.dtype, torch.float32)


def _target_weights(process: Process, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (p, q) of the training target p epsilon + q x_0."""
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    return {
        "epsilon": (one, zero),
        "sample": (zero, one),
        "v_prediction": (alpha, -sigma),
        "flow": (one, -one),
    }[process.prediction_type]


def _alpha_sigma(process: Process, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t) in the dtype of x's arithmetic, (B, 1, ...) so that they broadcast over x."""
    shape, dtype = (-1, *[1] * (x.ndim - 1)), arithmetic_dtype(x)
    return process.alpha(t).to(dtype).reshape(shape), process.sigma(t).to(dtype).reshape(shape)


@lru_cache
def _log_alpha_bar_table(schedule: str, steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """log of the cumulative product of 1 - beta, (steps + 1,), with 0 (clean) in front."""
    if schedule == "linear":
        # the classic betas belong to 1000 steps; with more, each is proportionally smaller
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    else:
        grid = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA)
    log_alpha_bar = torch.cumsum(torch.log1p(-betas), dim=0)
    return torch.nn.functional.pad(log_alpha_bar, (1, 0)).to(device=device, dtype=dtype)


def _check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{field} {name!r} is unknown; choose one of {', '.join(known)}")
