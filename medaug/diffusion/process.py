"""The forward process x_t = alpha(t) x_0 + sigma(t) epsilon, and what a network learns to predict about it.

Time t runs from 0 to 1: t = 0 is clean (alpha 1, sigma 0), t = 1 is the noisiest. epsilon is standard normal. All
arithmetic is in float32, or float64 if the input is, whatever the network's precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

from medaug.diffusion.predictions import LOSS_WEIGHTS, PREDICTIONS, LossWeight, Prediction, Uniform
from medaug.diffusion.schedules import SCHEDULES, Schedule, arithmetic_dtype
from medaug.tables import parse_parameters

_Part = TypeVar("_Part")

_UNREAD_IN_OLD_CHECKPOINTS = (
    *("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data"),
    *("log_sigma_mean", "log_sigma_std"),
)
"""Keys that old checkpoints may contain although their process does not read them."""


@dataclass(frozen=True)
class Process:
    """A noise schedule, a prediction type and a loss weight.

    Raises:
        ValueError: a network cannot learn the prediction type with the schedule.
    """

    schedule: Schedule
    prediction: Prediction
    loss_weight: LossWeight = Uniform()

    def __post_init__(self) -> None:
        """Check that the parts work together."""
        self.prediction.check(self.schedule)

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of x_0 at times t in [0, 1]: same shape, decreasing from 1 at t = 0; float32, or float64 if t is."""
        return self.schedule.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at times t: shape and precision as for alpha, increasing from 0 at t = 0."""
        return self.schedule.sigma(t)


def build_process(
    noise_schedule: str,
    prediction_type: str,
    loss_weight: str = "uniform",
    parameters: Sequence[str] = (),
    **options: Any,
) -> Process:
    """Build the process from plain `process` options; absent keys have their defaults.

    Args:
        noise_schedule, prediction_type, loss_weight: names in `SCHEDULES`, `PREDICTIONS` and `LOSS_WEIGHTS`.
        parameters: further options of entries from installed packages, each as "name:value".
        options: options of the three parts, see their classes.

    Raises:
        UserError: an unknown name.
        ValueError: an option that none of the parts reads, or an invalid value.
    """
    kinds = (SCHEDULES[noise_schedule], PREDICTIONS[prediction_type], LOSS_WEIGHTS[loss_weight])
    read = {name for kind in kinds for name in _defaults(kind)}
    schedules = (SCHEDULES[name] for name in SCHEDULES.own)
    known = {name: value for kind in (*schedules, *kinds) for name, value in _defaults(kind).items()}
    given = options | parse_parameters(parameters)
    for name, value in given.items():
        if name in read or name in _UNREAD_IN_OLD_CHECKPOINTS:
            continue
        if name not in known or value != known[name]:
            raise ValueError(f"{name} is {value}, but noise_schedule {noise_schedule} does not read it; leave it out")
    schedule, prediction, weight = kinds
    return Process(_build(schedule, given), _build(prediction, given), _build(weight, given))


def _defaults(kind: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind)}


def _build(kind: type[_Part], options: dict[str, Any]) -> _Part:
    return kind(**{name: options[name] for name in _defaults(kind) if name in options})


def add_noise(process: Process, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) noise, the marginal q(x_t | x_0) (Ho et al. 2020, eq. 4).

    x0 and noise: (B, ...); t: (B,) times in [0, 1]. Returns (B, ...) in float32 (float64 if x0 is).
    """
    alpha, sigma = _alpha_sigma(process, t, x0)
    return alpha * x0 + sigma * noise


def training_target(process: Process, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The network's target at x_t = add_noise(process, x0, noise, t); see `Prediction`.

    Shapes and precision as in `add_noise`.
    """
    alpha, sigma = _alpha_sigma(process, t, x0)
    of_noise, of_x0 = process.prediction.weights(alpha, sigma)
    return of_noise * noise + of_x0 * x0


def predicted_sample(process: Process, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Compute x_0 from the network's output at x_t; the inverse of `training_target`.

    Shapes and precision as in `add_noise`.
    """
    alpha, sigma = _alpha_sigma(process, t, x_t)
    return process.prediction.x0(output, x_t, alpha, sigma)


def loss_weight(process: Process, t: Tensor) -> Tensor:
    """The weight of the squared error of the network's output at times t (B,): (B,), float32 (float64 if t is)."""
    return process.loss_weight.weight(process.prediction, process.alpha(t), process.sigma(t))


def _alpha_sigma(process: Process, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t), shaped (B, 1, ...) so that they broadcast over x, in the dtype of x's arithmetic."""
    shape, dtype = (-1, *[1] * (x.ndim - 1)), arithmetic_dtype(x)
    return process.alpha(t).to(dtype).reshape(shape), process.sigma(t).to(dtype).reshape(shape)
