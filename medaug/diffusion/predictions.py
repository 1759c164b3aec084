"""Prediction types: what a network predicts about x_t = alpha x_0 + sigma epsilon; and the weights of its loss.

Each prediction type and each loss weight is a frozen dataclass whose fields are the `process` options that it reads,
and an entry of `PREDICTIONS` or `LOSS_WEIGHTS`. A prediction type works with any schedule that its `check` accepts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medaug.diffusion.schedules import Schedule
from medaug.tables import Table


class Prediction(ABC):
    """A prediction type: the training target p epsilon + q x_0, with weights p and q that depend on alpha and sigma.

    Attributes:
        name: name in `PREDICTIONS`.
        divides_by_alpha: whether computing x_0 divides by alpha, which magnifies errors where alpha is small.
    """

    name: ClassVar[str]
    divides_by_alpha: ClassVar[bool] = False

    @abstractmethod
    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The weights (p, q) of noise and x_0; they have the shape of alpha and sigma."""

    def check(self, schedule: Schedule) -> None:  # noqa: B027  # accepts every schedule unless a subclass overrides it
        """Raise ValueError, with the remedy, if a network cannot learn this prediction with the schedule."""

    def x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Compute x_0 from the network's output at x_t.

        It solves the equations x_t = alpha x_0 + sigma epsilon and output = p epsilon + q x_0. They have exactly one
        solution at every t for all types but epsilon.
        """
        p, q = self.weights(alpha, sigma)
        return (p * x_t - sigma * output) / (alpha * p - sigma * q)

    def x0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The factor by which an error of the network's output is multiplied in x_0."""
        p, q = self.weights(alpha, sigma)
        return sigma / (alpha * p - sigma * q)


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (Ho et al. 2020).

    x_0 follows by a division by alpha, so alpha must never be 0; on variance-preserving schedules it is small near
    t = 1.
    """

    name: ClassVar[str] = "epsilon"
    divides_by_alpha: ClassVar[bool] = True

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 0)."""
        return torch.ones_like(alpha), torch.zeros_like(alpha)

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that ends in pure noise: there x_1 is epsilon itself and has no information about x_0."""
        if schedule.ends_in_pure_noise:
            raise ValueError(
                f"prediction_type epsilon cannot be used with noise_schedule {schedule.title}: alpha is 0 at t = 1, "
                "so x_0 cannot be recovered there; use flow, v_prediction or sample"
            )


@dataclass(frozen=True)
class Sample(Prediction):
    """x_0 itself."""

    name: ClassVar[str] = "sample"

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(0, 1)."""
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output; the general formula is 0 / 0 at sigma = 0."""
        return output.to(alpha.dtype)

    def x0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class Velocity(Prediction):
    """alpha epsilon - sigma x_0 (Salimans & Ho 2022, appendix D)."""

    name: ClassVar[str] = "v_prediction"

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, -sigma)."""
        return alpha, -sigma

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule whose sigma is far above 1, because the target grows with it."""
        if schedule.variance_explodes:
            raise ValueError(
                f"prediction_type v_prediction cannot be used with noise_schedule {schedule.title}: the target would "
                "grow with sigma; use edm, which is v scaled to unit variance"
            )


@dataclass(frozen=True)
class Flow(Prediction):
    """epsilon - x_0 (Liu et al. 2022; the velocity dx/dt of rectified flow)."""

    name: ClassVar[str] = "flow"

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(1, -1)."""
        one = torch.ones_like(alpha)
        return one, -one


@dataclass(frozen=True)
class Edm(Prediction):
    """(x_0 - c_skip x_t) / c_out (Karras et al. 2022, table 1).

    It has unit variance if the standard deviation of x_0 is sigma_data. With x_t = x_0 + sigma epsilon it equals
    (sigma x_0 / sigma_data - sigma_data epsilon) / sqrt(sigma^2 + sigma_data^2). For other alpha the same holds with
    x_t / alpha and sigma / alpha. On a variance-preserving schedule with sigma_data = 1 it is -v.

    Raises:
        ValueError: sigma_data is not above 0.
    """

    name: ClassVar[str] = "edm"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data is {self.sigma_data:g}, but must be above 0")

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        data = self.sigma_data
        scale = (sigma.square() + (data * alpha).square()).rsqrt()
        return -data * alpha * scale, sigma / data * scale


class LossWeight(ABC):
    """The weight of the squared error of the network's output at each noise level.

    Attributes:
        name: name in `LOSS_WEIGHTS`.
    """

    name: ClassVar[str]

    @abstractmethod
    def weight(self, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weights; they have the shape of alpha and sigma."""


@dataclass(frozen=True)
class Uniform(LossWeight):
    """1 everywhere. With `Edm` this is the paper's lambda(sigma) = 1 / c_out^2 on the error of x_0."""

    name: ClassVar[str] = "uniform"

    def weight(self, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class MinSnr(LossWeight):
    """Weight min(SNR, gamma) on the squared error of x_0, with SNR = alpha^2 / sigma^2 (Hang et al. 2023, gamma 5).

    An error e of the output is an error g e of x_0, with g = `Prediction.x0_error`, so the weight of the output's
    squared error is g^2 min(SNR, gamma):

        sample        min(SNR, 5)
        epsilon       min(SNR, 5) / SNR
        v_prediction  min(SNR, 5) / (SNR + 1) where alpha^2 + sigma^2 = 1
        flow          min(SNR, 5) / (sqrt(SNR) + 1)^2
        edm           min(SNR, 5) c_out^2

    Pure noise (SNR 0) has weight 0, except with epsilon.
    """

    name: ClassVar[str] = "min_snr"
    gamma: ClassVar[float] = 5.0  # section 3.4

    def weight(self, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See the class."""
        of_x0 = (alpha / sigma).square().clamp(max=self.gamma)
        return prediction.x0_error(alpha, sigma).square() * of_x0


PREDICTIONS: Table[type[Prediction]] = Table(
    "predictions",
    "prediction type",
    Prediction,
    key="process.prediction_type",
    classes=True,
)
LOSS_WEIGHTS: Table[type[LossWeight]] = Table(
    "loss_weights",
    "loss weight",
    LossWeight,
    key="process.loss_weight",
    classes=True,
)
