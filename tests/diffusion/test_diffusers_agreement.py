"""Samplers against diffusers' schedulers, an independent implementation, with a nonlinear network in 3D."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from medaug.diffusion.process import Process, predicted_sample
from medaug.diffusion.samplers import sample, times

T = 1000
SHAPE = (2, 3, 4, 5, 6)
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any fixed nonlinear function of x and t that mixes voxels."""
    t = t.reshape(-1, 1, 1, 1, 1).to(x.dtype)
    return torch.tanh(0.8 * x.roll(1, dims=-1) + torch.sin(3 * t)) * (0.5 + t) + 0.1 * x


def ours(name: str, process: Process, grid: Tensor, eta: float = 0.0) -> Tensor:
    """A sample by this project; its noise stream is the one that `theirs` draws from."""
    generator = torch.Generator().manual_seed(1)
    return sample(
        name,
        lambda x, t: predicted_sample(process, network(x, t), x, t),
        start(),
        process,
        grid,
        lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64),
        eta,
    )


def theirs(scheduler: Any, network_times: Tensor, **options: object) -> Tensor:
    """A sample by a diffusers scheduler whose timesteps are set; network_times: t in [0, 1] of each."""
    x = start()
    for timestep, t in zip(scheduler.timesteps, network_times, strict=True):
        x = scheduler.step(network(x, t.expand(len(x))), timestep, x, **options).prev_sample
    return x


def start() -> Tensor:
    """The same first noise for both."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scheduler_and_grid(kind: str, steps: int, schedule: str, **options: object) -> tuple[Any, Tensor]:
    """A variance-preserving scheduler with exact tables and trailing timesteps, and its grid in our times."""
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=T,
        beta_schedule=BETA_SCHEDULES[schedule],
        timestep_spacing="trailing",
        **options,
    )
    # float32 tables lose digits of 1 - alpha_bar near t = 0
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), dim=0)
    scheduler.set_timesteps(steps)
    grid = torch.cat([(scheduler.timesteps.double() + 1) / T, torch.zeros(1, dtype=torch.float64)])
    if T % steps == 0:
        torch.testing.assert_close(grid, times(steps))
    return scheduler, grid


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to a fraction of the largest value (epsilon prediction makes large ones)."""
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("steps", [7, 10, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ddpm(schedule: str, prediction: str, steps: int) -> None:
    scheduler, grid = scheduler_and_grid(
        "DDPMScheduler", steps, schedule, prediction_type=prediction, clip_sample=False
    )
    expected = theirs(scheduler, grid[:-1], generator=torch.Generator().manual_seed(1))
    assert_same(ours("ddpm", Process(schedule, prediction, T), grid), expected)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [10, 50])  # DDIMScheduler is right only where the steps divide T
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ddim(schedule: str, prediction: str, steps: int, eta: float) -> None:
    scheduler, grid = scheduler_and_grid(
        "DDIMScheduler", steps, schedule, prediction_type=prediction, clip_sample=False
    )
    expected = theirs(scheduler, grid[:-1], eta=eta, generator=torch.Generator().manual_seed(1))
    assert_same(ours("ddim", Process(schedule, prediction, T), grid, eta), expected)


@pytest.mark.parametrize("steps", [7, 10, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_dpmpp_2m(schedule: str, prediction: str, steps: int) -> None:
    scheduler, grid = scheduler_and_grid(
        "DPMSolverMultistepScheduler",
        steps,
        schedule,
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    expected = theirs(scheduler, grid[:-1])
    # its sigmas and its x are float32
    assert_same(ours("dpmpp_2m", Process(schedule, prediction, T), grid), expected, tolerance=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 10, 50])
def test_ddim_on_rectified_flow_is_euler(steps: int) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=T)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    grid = times(steps)
    torch.testing.assert_close(scheduler.sigmas.double(), grid, rtol=0, atol=1e-6)
    expected = theirs(scheduler, grid[:-1])
    assert_same(ours("ddim", Process("rectified_flow", "flow"), grid), expected)


@pytest.mark.parametrize("steps", [7, 10, 50])
def test_dpmpp_2m_on_rectified_flow(steps: int) -> None:
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    grid = scheduler.sigmas.double()  # starts just below 1: at 1 it would be NaN
    expected = theirs(scheduler, grid[:-1])
    assert_same(ours("dpmpp_2m", Process("rectified_flow", "flow"), grid), expected, tolerance=1e-4)
