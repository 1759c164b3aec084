"""The forward process x_t = alpha(t) x_0 + sigma(t) epsilon, and what a network learns to predict about it.

Time t runs over [0, 1]: t = 0 is clean (alpha 1, sigma 0), t = 1 the noisiest. epsilon is standard normal.
Arithmetic is done in float32 whatever the network's precision; float64 stays float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medaug.diffusion.schedules import (
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    arithmetic_dtype,
    shifted,
)

NOISE_SCHEDULES = ("linear", "cosine", "rectified_flow", "edm")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow", "edm")
LOSS_WEIGHTS = ("uniform", "min_snr")
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 3.4


@dataclass(frozen=True)
class Process:
    """A noise schedule, the quantity that the network predicts, and how much an error counts at each time.

    noise_schedule
        "linear"          variance preserving, beta from 1e-4 to 0.02 (Ho et al. 2020, section 4)
        "cosine"          variance preserving, alpha_bar = cos^2 (Nichol & Dhariwal 2021, eq. 17)
        "rectified_flow"  alpha = 1 - t, sigma = t (Liu et al. 2022, eq. 1)
        "edm"             alpha = 1, sigma up to sigma_max (Karras et al. 2022, table 1)
    prediction_type, for any schedule
        "epsilon"         the noise (Ho et al. 2020)
        "sample"          x_0
        "v_prediction"    alpha epsilon - sigma x_0 (Salimans & Ho 2022, appendix D)
        "flow"            epsilon - x_0 (Liu et al. 2022; the velocity dx/dt of rectified flow)
        "edm"             (x_0 - c_skip x_t) / c_out (Karras et al. 2022, table 1), of unit variance at every time where
                          x_0 has the standard deviation sigma_data
    num_train_timesteps
        T, the number of noise levels of a variance-preserving schedule; None: continuous time, in closed form. The
        other schedules are continuous and do not read it.
    time_shift
        s > 0, for rectified flow: times are drawn, and sampled, at s t / (1 + (s - 1) t), which divides alpha / sigma
        by s (Esser et al. 2024, eq. 23). Large volumes want s above 1: many voxels that agree show their common shape
        through noise that hides each of them, so that shape is settled at noisier times.
    zero_terminal_snr
        for linear and cosine: t = 1 is pure noise, as sampling assumes (Lin et al. 2024, algorithm 1)
    sigma_min, sigma_max, sigma_data, log_sigma_mean, log_sigma_std
        of edm; sigma_data is 1 because a codec's coefficients are standardised. The paper's images had 0.5, and its
        mean of log sigma, -1.2, is at sigma_data 1 the same share of signal as -1.2 + log 2.
    loss_weight
        "uniform"         of the squared error of the network's output. With prediction_type edm this is the paper's
                          lambda(sigma) = 1 / c_out^2 on the error of x_0.
        "min_snr"         see `loss_weight`

    Raises ValueError for unknown names, for numbers that the schedule cannot have, and for what cannot work: epsilon
    prediction where alpha is 0 at t = 1 (x_1 is then epsilon itself, and knowing it says nothing about x_0), and
    v_prediction with edm.
    """

    noise_schedule: str
    prediction_type: str
    num_train_timesteps: int | None = 1000
    time_shift: float = 1.0
    zero_terminal_snr: bool = False
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 1.0
    log_sigma_mean: float = -0.5
    log_sigma_std: float = 1.2
    loss_weight: str = "uniform"

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is trained with it."""
        _check_name("noise_schedule", self.noise_schedule, NOISE_SCHEDULES)
        _check_name("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _check_name("loss_weight", self.loss_weight, LOSS_WEIGHTS)
        self._check_numbers()
        if self.zero_terminal_snr and self.noise_schedule not in ("linear", "cosine"):
            raise ValueError(f"zero_terminal_snr is for linear and cosine, and {self.noise_schedule} does not read it")
        if self.prediction_type == "epsilon" and self.ends_in_pure_noise:
            cause = "zero_terminal_snr" if self.zero_terminal_snr else "noise_schedule rectified_flow"
            raise ValueError(
                f"prediction_type epsilon cannot go with {cause}: alpha is 0 at t = 1, "
                "so x_0 cannot be recovered there; use flow, v_prediction or sample"
            )
        if self.prediction_type == "v_prediction" and self.noise_schedule == "edm":
            raise ValueError(
                "prediction_type v_prediction cannot go with noise_schedule edm: it would grow with sigma; "
                "use edm, which is v there, of unit variance"
            )

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule, with all that depends on it alone."""
        if self.noise_schedule == "rectified_flow":
            return RectifiedFlow(self.time_shift)
        if self.noise_schedule == "edm":
            return VarianceExploding(
                self.sigma_min, self.sigma_max, self.sigma_data, self.log_sigma_mean, self.log_sigma_std
            )
        return VariancePreserving(self.noise_schedule, self.num_train_timesteps, self.zero_terminal_snr)

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether alpha is 0 at t = 1, and sigma / alpha infinite."""
        return self.zero_terminal_snr or self.noise_schedule == "rectified_flow"

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of x_0 at times t in [0, 1]: same shape, from 1 down; float32, or float64 if t is."""
        return self.schedule.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at times t: shape and precision as for alpha, rising from 0."""
        return self.schedule.sigma(t)

    def training_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times to train at, float32 (n,), on the generator's device; how, the schedule's class says."""
        return self.schedule.training_times(n, generator)

    def shifted(self, t: Tensor) -> Tensor:
        """Times t in [0, 1], uniform in it, to the shifted times of rectified flow; see `time_shift`."""
        return shifted(t, self.time_shift)

    def _check_numbers(self) -> None:
        steps = self.num_train_timesteps
        if steps is not None:
            if self.noise_schedule == "linear" and steps <= 20:
                raise ValueError(
                    f"num_train_timesteps is {steps}, but the linear schedule needs more than "
                    "20: its last beta is 20 / num_train_timesteps and must stay below 1"
                )
            if steps < 1:
                raise ValueError(f"num_train_timesteps is {steps}, but must be at least 1, or null")
            if self.zero_terminal_snr and steps < 2:
                raise ValueError("num_train_timesteps is 1, but zero_terminal_snr needs at least 2")
        if self.time_shift <= 0 or (self.time_shift != 1 and self.noise_schedule != "rectified_flow"):
            raise ValueError(
                f"time_shift is {self.time_shift:g}, but must be above 0, and 1 with {self.noise_schedule}"
            )
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min and sigma_max are {self.sigma_min:g} and {self.sigma_max:g}, but must rise from above 0"
            )
        for name in ("sigma_data", "log_sigma_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, but must be above 0")


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
    solution at every t for all types but epsilon. Epsilon divides by alpha, which never is 0 where it is allowed, but
    on a variance-preserving schedule small near t = 1, where that magnifies the network's error.
    Shapes and precision as in `add_noise`.
    """
    if process.prediction_type == "sample":  # the pair is 0 / 0 at sigma = 0
        return output.to(arithmetic_dtype(x_t))
    alpha, sigma = _alpha_sigma(process, t, x_t)
    p, q = _target_weights(process, alpha, sigma)
    return (p * x_t - sigma * output) / (alpha * p - sigma * q)


def loss_weight(process: Process, t: Tensor) -> Tensor:
    """What the squared error of the network's output counts at times t (B,): (B,), float32 (float64 if t is).

    "min_snr" is min(SNR, 5) on the squared error of x_0, with SNR = alpha^2 / sigma^2 (Hang et al. 2023). Since
    x_0 = (p x_t - sigma output) / (alpha p - sigma q), an error e of the output is one of g e in x_0, with
    g = sigma / (alpha p - sigma q), so the output's squared error counts g^2 min(SNR, 5):

        sample        min(SNR, 5)
        epsilon       min(SNR, 5) / SNR
        v_prediction  min(SNR, 5) / (SNR + 1) where alpha^2 + sigma^2 = 1
        flow          min(SNR, 5) / (sqrt(SNR) + 1)^2
        edm           min(SNR, 5) c_out^2

    Pure noise (SNR 0) counts nothing, except with epsilon.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    if process.loss_weight == "uniform":
        return torch.ones_like(alpha)
    of_x0 = (alpha / sigma).square().clamp(max=MIN_SNR_GAMMA)
    if process.prediction_type == "sample":
        return of_x0
    p, q = _target_weights(process, alpha, sigma)
    return (sigma / (alpha * p - sigma * q)).square() * of_x0


def _target_weights(process: Process, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (p, q) of the training target p epsilon + q x_0.

    EDM's target, (x_0 - c_skip x_t) / c_out with x_t = x_0 + sigma epsilon, multiplies out to
    (sigma x_0 / sigma_data - sigma_data epsilon) / sqrt(sigma^2 + sigma_data^2). At other alpha the same is true of
    x_t / alpha and sigma / alpha. On a variance-preserving schedule with sigma_data = 1 it is -v.
    """
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    if process.prediction_type == "edm":
        data = process.sigma_data
        scale = (sigma.square() + (data * alpha).square()).rsqrt()
        return -data * alpha * scale, sigma / data * scale
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


def _check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{field} {name!r} is unknown; choose one of {', '.join(known)}")
