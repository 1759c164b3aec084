"""Samplers against diffusers' schedulers, an independent implementation, with a nonlinear network in 3D."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import rescale_zero_terminal_snr
from helpers import spaced_times, times
from torch import Tensor

from medaug.diffusion.process import Process, build_process, predicted_sample
from medaug.diffusion.samplers import sample

T = 1000
SHAPE = (2, 3, 4, 5, 6)
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any fixed nonlinear function of x and t that mixes voxels."""
    t = t.reshape(-1, 1, 1, 1, 1).to(x.dtype)
    return torch.tanh(0.8 * x.roll(1, dims=-1) + torch.sin(3 * t)) * (0.5 + t) + 0.1 * x


def of_steps(schedule: str, prediction: str, **options: Any) -> Process:
    """A process with T noise levels."""
    return build_process(schedule, prediction, num_train_timesteps=T, **options)


def ours(name: str, process: Process, grid: Tensor, eta: float = 0.0) -> Tensor:
    """A sample by medaug; it uses the same noise stream as `theirs`."""
    generator = torch.Generator().manual_seed(1)
    return sample(
        name,
        lambda x, t: predicted_sample(process, network(x, t), x, t),
        process.schedule.initial_std * start(),
        process,
        grid,
        lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64),
        {"eta": eta} if eta else None,
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
    """Check equality up to a fraction of the largest value, because epsilon prediction makes large values."""
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("steps", [7, 10, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ddpm(schedule: str, prediction: str, steps: int) -> None:
    scheduler, grid = scheduler_and_grid(
        "DDPMScheduler", steps, schedule, prediction_type=prediction, clip_sample=False
    )
    expected = theirs(scheduler, grid[:-1], generator=torch.Generator().manual_seed(1))
    assert_same(ours("ddpm", of_steps(schedule, prediction), grid), expected)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [10, 50])  # DDIMScheduler is right only where the steps divide T
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ddim(schedule: str, prediction: str, steps: int, eta: float) -> None:
    scheduler, grid = scheduler_and_grid(
        "DDIMScheduler", steps, schedule, prediction_type=prediction, clip_sample=False
    )
    expected = theirs(scheduler, grid[:-1], eta=eta, generator=torch.Generator().manual_seed(1))
    assert_same(ours("ddim", of_steps(schedule, prediction), grid, eta), expected)


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
    assert_same(ours("dpmpp_2m", of_steps(schedule, prediction), grid), expected, tolerance=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 10, 50])
def test_ddim_on_rectified_flow_is_euler(steps: int) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=T)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    grid = times(steps)
    torch.testing.assert_close(scheduler.sigmas.double(), grid, rtol=0, atol=1e-6)
    expected = theirs(scheduler, grid[:-1])
    assert_same(ours("ddim", build_process("rectified_flow", "flow"), grid), expected)


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
    assert_same(ours("dpmpp_2m", build_process("rectified_flow", "flow"), grid), expected, tolerance=1e-4)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ddim_from_zero_terminal_snr(schedule: str, prediction: str, steps: int) -> None:
    scheduler, grid = scheduler_and_grid(
        "DDIMScheduler", steps, schedule, prediction_type=prediction, clip_sample=False
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - rescale_zero_terminal_snr(scheduler.betas.double()), dim=0)
    expected = theirs(scheduler, grid[:-1], eta=0.3, generator=torch.Generator().manual_seed(1))
    assert_same(
        ours("ddim", of_steps(schedule, prediction, zero_terminal_snr=True), grid, 0.3),
        expected,
    )


@pytest.mark.parametrize("steps", [7, 10, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_dpmpp_2m_sde(schedule: str, prediction: str, steps: int) -> None:
    scheduler, grid = scheduler_and_grid(
        "DPMSolverMultistepScheduler",
        steps,
        schedule,
        prediction_type=prediction,
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    x, generator = start(), torch.Generator().manual_seed(1)
    for timestep, t in zip(scheduler.timesteps, grid, strict=False):
        # pass the noise in, because the scheduler would draw float32
        z = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        x = scheduler.step(network(x, t.expand(len(x))), timestep, x, variance_noise=z).prev_sample
    assert_same(ours("dpmpp_2m_sde", of_steps(schedule, prediction), grid), x, tolerance=1e-4)


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_heun_on_rectified_flow(steps: int) -> None:
    scheduler: Any = diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=T)
    scheduler.set_timesteps(steps)
    process = build_process("rectified_flow", "flow")
    grid = spaced_times(process, steps, "uniform")
    expected = theirs(scheduler, scheduler.timesteps.double() / T)
    assert_same(ours("heun", process, grid), expected)


EDM = build_process("edm", "edm", sigma_data=0.5)


def edm_network(process: Process, x: Tensor, t: Tensor) -> Tensor:
    """The network behind the scaled input and the time that EDM tells it."""
    scale = process.schedule.input_scale(t).reshape(-1, 1, 1, 1, 1)
    return network(scale * x, process.schedule.network_time(t))


def ours_edm(name: str, process: Process, steps: int) -> Tensor:
    """A sample by this project at Karras' levels."""
    generator = torch.Generator().manual_seed(1)
    return sample(
        name,
        lambda x, t: predicted_sample(process, edm_network(process, x, t), x, t),
        process.schedule.initial_std * start(),
        process,
        spaced_times(process, steps, "karras"),
        lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("steps", [2, 7, 18, 50])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("ddim", "EDMEulerScheduler", {}),
        ("dpmpp_2m", "EDMDPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        ("dpmpp_2m_sde", "EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_edm(name: str, kind: str, options: dict[str, Any], steps: int) -> None:
    scheduler = getattr(diffusers, kind)(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, **options)
    scheduler.set_timesteps(steps)
    x, generator = 80.0 * start(), torch.Generator().manual_seed(1)
    for c_noise in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, c_noise), c_noise.double().expand(len(x)))
        if name == "dpmpp_2m_sde":  # its own noise, in float32, with our random numbers
            scheduler_noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
            x = step_with(scheduler, output, c_noise, x, scheduler_noise)
        else:
            x = scheduler.step(output, c_noise, x).prev_sample
    assert_same(ours_edm(name, EDM, steps), x, tolerance=1e-4)


def step_with(scheduler: Any, output: Tensor, timestep: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """A step of a scheduler that can only draw its noise itself."""
    with pytest.MonkeyPatch.context() as patch:
        module = "diffusers.schedulers.scheduling_edm_dpmsolver_multistep.randn_tensor"
        patch.setattr(module, lambda *_, **__: noise)
        return scheduler.step(output, timestep, x).prev_sample


@pytest.mark.parametrize("steps", [2, 7, 18, 50])
def test_heun_on_edm(steps: int) -> None:
    """HeunDiscreteScheduler works on x / alpha, which is edm's x, at the sigma / alpha of its own table."""
    scheduler: Any = diffusers.HeunDiscreteScheduler(beta_schedule="linear", use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    process = build_process("edm", "epsilon", sigma_min=sigmas[-2].item(), sigma_max=sigmas[0].item())
    x = sigmas[0] * start()
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        network_time = (sigma.log() / 4).expand(len(x))
        x = scheduler.step(network(x / (sigma**2 + 1).sqrt(), network_time), timestep, x).prev_sample
    assert_same(ours_edm("heun", process, steps), x, tolerance=1e-4)
