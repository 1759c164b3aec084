"""Noise schedules: alpha(t) and sigma(t) of x_t = alpha x_0 + sigma epsilon, training times and network inputs.

Each schedule is a frozen dataclass whose fields are the `process` options that it reads, and an entry of `SCHEDULES`.

Time t runs from 0 to 1: t = 0 is clean (alpha 1, sigma 0), t = 1 is the noisiest. Results are float32, or float64 if t
is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from medaug.tables import Table

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last step of the cosine schedule finite
MIN_ALPHA_BAR = 2.4e-9  # alpha_bar at t = 1 of the cosine schedule with 1000 steps, due to MAX_BETA
RHO = 7.0  # Karras et al. 2022, table 1: noise levels are evenly spaced in sigma^(1 / RHO)


class Schedule(ABC):
    """A noise schedule. Subclasses are frozen dataclasses; their fields are options of `process`.

    Attributes:
        name: name in `SCHEDULES`.
        variance_explodes: whether sigma becomes much larger than the standard deviation of the data.
        initial_std: standard deviation of x at t = 1, where sampling starts.
        least_time: the smallest time above 0 at which samplers with uniform or karras spacing evaluate the network.
    """

    name: ClassVar[str]
    variance_explodes: ClassVar[bool] = False
    initial_std: float = 1.0
    least_time: float = 1e-3  # Song et al. 2021 (VP-SDE), appendix C

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of x_0 at times t in [0, 1]: same shape, decreasing from 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at times t: same shape, increasing from 0 at t = 0."""

    @abstractmethod
    def training_times(self, n: int, generator: torch.Generator) -> Tensor:
        """n random training times, float32 (n,), on the generator's device."""

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether alpha is 0 at t = 1, so that sigma / alpha is infinite there."""
        return False

    @property
    def title(self) -> str:
        """The name to use in messages."""
        return self.name

    def shifted(self, t: Tensor) -> Tensor:
        """Map evenly spaced times t in [0, 1] to the times that this schedule samples at; by default the same times."""
        return t

    def input_scale(self, t: Tensor) -> Tensor:
        """The factor by which x_t is multiplied for the network, shape of t; 1 if x_t already has unit variance."""
        return torch.ones_like(t)

    def network_time(self, t: Tensor) -> Tensor:
        """The time that the network gets, shape of t; values are of order 1."""
        return t


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """alpha = 1 - t, sigma = t (Liu et al. 2022, eq. 1).

    Training times are logit-normal(0, 1), shifted (Esser et al. 2024, section 3.1).

    Attributes:
        time_shift: s > 0. Training and sampling times t become s t / (1 + (s - 1) t), which divides alpha / sigma by s
            (Esser et al. 2024, eq. 23). Large volumes need s above 1: their shape is still visible at noise levels that
            hide each single voxel, because many voxels share it, so the shape is decided at noisier times.

    Raises:
        ValueError: time_shift is not above 0.
    """

    name: ClassVar[str] = "rectified_flow"
    time_shift: float = 1.0

    def __post_init__(self) -> None:
        if self.time_shift <= 0:
            raise ValueError(f"time_shift is {self.time_shift:g}, but must be above 0")

    @property
    def ends_in_pure_noise(self) -> bool:
        """Always."""
        return True

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t.to(arithmetic_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        """The time t itself."""
        return t.to(arithmetic_dtype(t))

    def training_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Shifted logit-normal times."""
        return self.shifted(torch.randn(n, generator=generator, device=generator.device).sigmoid())

    def shifted(self, t: Tensor) -> Tensor:
        """s t / (1 + (s - 1) t), where s is `time_shift`; 0 and 1 do not change."""
        return self.time_shift * t / (1 + (self.time_shift - 1) * t)


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha^2 = alpha_bar(t), sigma^2 = 1 - alpha_bar(t), with the betas of a subclass.

    Attributes:
        num_train_timesteps: T, the number of noise levels. alpha_bar is then a table, see `_log_alpha_bar_table`: entry
            i (0 <= i < T) is at t = (i + 1) / T, and log alpha_bar is linear in between. Training times are uniform
            over the table (Ho et al. 2020, algorithm 1). None: the closed form that the tables approach for large T,
            see `_log_alpha_bar`; training times are uniform over (0, 1].
        zero_terminal_snr: makes t = 1 pure noise, as sampling assumes, by shifting and scaling alpha (Lin et al. 2024,
            algorithm 1).

    Raises:
        ValueError: too few noise levels.
    """

    num_train_timesteps: int | None = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        steps = self.num_train_timesteps
        if steps is not None and steps < 1:
            raise ValueError(f"num_train_timesteps is {steps}, but must be at least 1, or null")
        if steps == 1 and self.zero_terminal_snr:
            raise ValueError("num_train_timesteps is 1, but zero_terminal_snr needs at least 2")

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether the terminal SNR is zero."""
        return self.zero_terminal_snr

    @property
    def title(self) -> str:
        """The name, with zero_terminal_snr if it is set."""
        return f"{self.name} with zero_terminal_snr" if self.zero_terminal_snr else self.name

    @property
    def least_time(self) -> float:  # type: ignore[override]
        """The first time of the table."""
        return 1 / self.num_train_timesteps if self.num_train_timesteps else Schedule.least_time

    def alpha(self, t: Tensor) -> Tensor:
        """The square root of alpha_bar."""
        return torch.exp(self._log_alpha_bar(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """The square root of 1 - alpha_bar."""
        # 1 - alpha^2 would lose digits near t = 0
        return torch.expm1(self._log_alpha_bar(t)).abs().sqrt()

    def training_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Uniform times, over the table or over (0, 1]."""
        if (steps := self.num_train_timesteps) is None:
            return 1 - torch.rand(n, generator=generator, device=generator.device)
        return torch.randint(1, steps + 1, (n,), generator=generator, device=generator.device) / steps

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        dtype, steps = arithmetic_dtype(t), self.num_train_timesteps
        if steps is None:
            return _log_alpha_bar(self.name, self.zero_terminal_snr, t.double()).to(dtype)
        t = t.to(dtype)
        table = _log_alpha_bar_table(self.name, steps, self.zero_terminal_snr, dtype, t.device)
        position = t * steps
        below = position.long().clamp(0, steps - 1)
        low, high, share = table[below], table[below + 1], position - below
        # In the last interval before zero signal, where log alpha_bar is infinite, alpha is linear instead.
        return torch.where(high.isinf(), low + 2 * torch.log1p(-share), torch.lerp(low, high, share))


@dataclass(frozen=True)
class Linear(VariancePreserving):
    """Beta from 1e-4 to 0.02 (Ho et al. 2020, section 4).

    Raises:
        ValueError: 20 noise levels or fewer.
    """

    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_train_timesteps is not None and self.num_train_timesteps <= 20:
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps}, but the linear schedule needs more than "
                "20: its last beta is 20 / num_train_timesteps and must stay below 1"
            )


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """alpha_bar = cos^2 (Nichol & Dhariwal 2021, eq. 17)."""

    name: ClassVar[str] = "cosine"


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """alpha = 1, sigma from 0 to sigma_max: the noise and the preconditioning of EDM (Karras et al. 2022, table 1).

    sigma(t) = (a + t (b - a))^rho - sigma_min, with a = sigma_min^(1 / rho), b = (sigma_max + sigma_min)^(1 / rho): the
    paper's even steps in sigma^(1 / rho), moved down by sigma_min so that t = 0 is clean.
    In training, log sigma is normal, clamped to sigma_min and sigma_max. The network's inputs are c_in x and c_noise.

    sigma_data is 1 because a codec's coefficients are standardised. The paper's images have sigma_data 0.5 and a mean
    log sigma of -1.2; at sigma_data 1 the same signal-to-noise ratio is at -1.2 + log 2, about -0.5.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max, or a standard deviation is not above 0.
    """

    name: ClassVar[str] = "edm"
    variance_explodes: ClassVar[bool] = True
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 1.0
    log_sigma_mean: float = -0.5
    log_sigma_std: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min and sigma_max are {self.sigma_min:g} and {self.sigma_max:g}, but must be above 0, and "
                "sigma_max above sigma_min"
            )
        for name in ("sigma_data", "log_sigma_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, but must be above 0")

    @property
    def initial_std(self) -> float:  # type: ignore[override]
        """sigma_max; x_0 is negligible compared with it."""
        return self.sigma_max

    @property
    def least_time(self) -> float:  # type: ignore[override]
        """The time at which sigma is sigma_min."""
        return float(self._time(torch.tensor(self.sigma_min, dtype=torch.float64)))

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t, dtype=arithmetic_dtype(t))

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level, up to sigma_max."""
        # sigma_min is factored out, so that no digits are lost and t = 0 gives exactly 0
        sigma = self.sigma_min * torch.expm1(RHO * torch.log1p(self._slope * t.double()))
        return sigma.to(arithmetic_dtype(t))

    def training_times(self, n: int, generator: torch.Generator) -> Tensor:
        """The times of log-normal noise levels."""
        z = torch.randn(n, generator=generator, device=generator.device)
        sigma = torch.exp(self.log_sigma_mean + self.log_sigma_std * z.double())
        return self._time(sigma.clamp(self.sigma_min, self.sigma_max)).float()

    def input_scale(self, t: Tensor) -> Tensor:
        """c_in = 1 / sqrt(sigma^2 + sigma_data^2)."""
        return (self.sigma(t).square() + self.sigma_data**2).rsqrt()

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise = log(sigma) / 4; below sigma_min, which training never uses, the value at sigma_min."""
        return self.sigma(t).clamp(min=self.sigma_min).log() / 4

    @property
    def _slope(self) -> float:
        """(b - a) / a."""
        return (self.sigma_max / self.sigma_min + 1) ** (1 / RHO) - 1

    def _time(self, sigma: Tensor) -> Tensor:
        """The time at which a noise level is reached."""
        return torch.expm1(torch.log1p(sigma / self.sigma_min) / RHO) / self._slope


SCHEDULES: Table[type[Schedule]] = Table(
    "schedules",
    "noise schedule",
    Schedule,
    key="process.noise_schedule",
    classes=True,
)


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the process computes with x: float32, or float64 if x is."""
    return torch.promote_types(x.dtype, torch.float32)


@lru_cache
def _log_alpha_bar_table(
    shape: str, steps: int, zero_terminal_snr: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Table (steps + 1,) of log alpha_bar, the log of the cumulative product of 1 - beta; entry 0 is 0 (clean).

    linear: beta from 1e-4 to 0.02 (Ho et al. 2020, section 4); cosine: alpha_bar = cos^2 (Nichol & Dhariwal 2021,
    eq. 17). With zero_terminal_snr, alpha is shifted to end at 0 and scaled to keep its first value (Lin et al. 2024).
    """
    if shape == "linear":
        # the published betas are for 1000 steps; with more steps, each is proportionally smaller
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    else:
        grid = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA)
    log_alpha_bar = torch.cumsum(torch.log1p(-betas), dim=0)
    if zero_terminal_snr:
        alpha = torch.exp(log_alpha_bar / 2)
        log_alpha_bar = 2 * torch.log((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1])))
    return torch.nn.functional.pad(log_alpha_bar, (1, 0)).to(device=device, dtype=dtype)


def _log_alpha_bar(shape: str, zero_terminal_snr: bool, t: Tensor) -> Tensor:
    """log alpha_bar at times t (float64), in closed form.

    linear: the VP-SDE with beta from 0.1 to 20 (Song et al. 2021, eq. 33). cosine: cos^2, mixed with MIN_ALPHA_BAR so
    that alpha is above 0 at t = 1. With zero_terminal_snr, alpha becomes (alpha - alpha(1)) / (1 - alpha(1)).
    """
    if shape == "linear":
        log_alpha_bar = -(0.1 * t + (20 - 0.1) * t.square() / 2)
        end = -(0.1 + 20) / 2
    else:
        angle, start = (t + 0.008) / 1.008 * math.pi / 2, 0.008 / 1.008 * math.pi / 2
        # 1 - cos^2 / cos^2(start), written so that no digits are lost at t = 0
        fall = torch.sin(angle - start) * torch.sin(angle + start) / math.cos(start) ** 2
        log_alpha_bar = torch.log1p(-(1 - MIN_ALPHA_BAR) * fall)
        end = math.log(MIN_ALPHA_BAR)
    if zero_terminal_snr:
        falling = torch.expm1(log_alpha_bar / 2) / -math.expm1(end / 2)  # from 0 to -1
        log_alpha_bar = 2 * torch.log1p(falling.clamp(min=-1.0))
    return log_alpha_bar
