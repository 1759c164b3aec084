"""Which processes, samplers and spacings can be combined, and the times of each spacing."""

from __future__ import annotations

from itertools import product

import diffusers
import numpy as np
import pytest
import torch
from helpers import spaced_times, times

from medaug.diffusion.predictions import PREDICTIONS
from medaug.diffusion.process import Process, build_process, predicted_sample
from medaug.diffusion.samplers import SAMPLERS, Sampling, safe_spacing, sample
from medaug.diffusion.schedules import SCHEDULES as NOISE_SCHEDULES
from medaug.diffusion.spacings import SPACINGS
from medaug.errors import UserError

PURE_NOISE = {("rectified_flow", False), ("linear", True), ("cosine", True)}
COMBINATIONS = list(product(NOISE_SCHEDULES, PREDICTIONS, (False, True), SAMPLERS, SPACINGS))


def works(schedule: str, prediction: str, zero_terminal_snr: bool, spacing: str) -> bool:
    """The combinations that the documentation allows."""
    if zero_terminal_snr and schedule not in ("linear", "cosine"):
        return False
    if prediction == "epsilon" and (schedule, zero_terminal_snr) in PURE_NOISE:
        return False
    if prediction == "v_prediction" and schedule == "edm":
        return False
    return not (spacing == "karras" and (schedule, zero_terminal_snr) in PURE_NOISE)


@pytest.mark.parametrize(("schedule", "prediction", "zero_terminal_snr", "sampler", "spacing"), COMBINATIONS)
def test_allowed_and_refused_combinations(
    schedule: str, prediction: str, zero_terminal_snr: bool, sampler: str, spacing: str
) -> None:
    if not works(schedule, prediction, zero_terminal_snr, spacing):
        with pytest.raises(ValueError, match=f"{prediction}|zero_terminal_snr|{spacing}"):
            Sampling(sampler, 1000, spacing).check(
                build_process(schedule, prediction, zero_terminal_snr=zero_terminal_snr)
            )
        return
    process = build_process(schedule, prediction, zero_terminal_snr=zero_terminal_snr)
    Sampling(sampler, 1000, spacing).check(process)
    x = process.schedule.initial_std * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    end = sample(
        sampler,
        lambda x, t: torch.tanh(x) * (1 - t[:, None]),
        x,
        process,
        spaced_times(process, 6, spacing),
        lambda: torch.ones(2, 3),
    )
    assert end.isfinite().all() and end.abs().max() < 2


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize(
    ("process", "spacing"),
    [
        (process, spacing)
        for process in (
            build_process("linear", "sample"),
            build_process("cosine", "sample", num_train_timesteps=None),
            build_process("edm", "edm"),
            build_process("rectified_flow", "flow"),
        )
        for spacing in SPACINGS
        if (process.schedule.name, spacing) != ("rectified_flow", "karras")  # refused by name
    ],
    ids=lambda value: value.schedule.name if isinstance(value, Process) else value,
)
def test_times_decrease_strictly_from_one_to_zero(process: Process, steps: int, spacing: str) -> None:
    grid = spaced_times(process, steps, spacing)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()


def test_no_steps_are_refused_at_every_spacing() -> None:
    for spacing in SPACINGS:
        with pytest.raises(ValueError, match="num_inference_steps is 0"):
            spaced_times(build_process("edm", "edm"), 0, spacing)
    with pytest.raises(UserError, match=r"sampler.spacing=leading: no such spacing.*all: trailing, uniform, karras"):
        spaced_times(build_process("edm", "edm"), 3, "leading")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_trailing_and_uniform_times_are_shifted_except_their_ends(shift: float) -> None:
    process = build_process("rectified_flow", "flow", time_shift=shift)
    torch.testing.assert_close(spaced_times(process, 7), process.schedule.shifted(times(7)))
    before = torch.cat([torch.linspace(1, 1e-3, 7, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(spaced_times(process, 7, "uniform"), process.schedule.shifted(before))


def test_uniform_times_are_those_of_diffusers_linspace() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(13)
    expected = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(
        spaced_times(build_process("linear", "sample"), 13, "uniform"), expected, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(("schedule", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_karras_levels_of_variance_preserving_schedules_are_those_of_diffusers(schedule: str, theirs: str) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule=theirs, use_karras_sigmas=True)
    scheduler.set_timesteps(9)
    process = build_process(schedule, "sample")
    grid = spaced_times(process, 9, "karras")
    ratio = process.sigma(grid) / process.alpha(grid)
    np.testing.assert_allclose(
        ratio, scheduler.sigmas.double(), rtol=2e-3
    )  # their alpha_bar is float32: 1 - it cancels


def test_karras_levels_of_edm_are_the_papers() -> None:
    process = build_process("edm", "edm", sigma_min=0.003, sigma_max=60.0)
    i = np.arange(18)
    expected = (60 ** (1 / 7) + i / 17 * (0.003 ** (1 / 7) - 60 ** (1 / 7))) ** 7  # Karras et al. 2022, eq. 5
    np.testing.assert_allclose(process.sigma(spaced_times(process, 18, "karras")), [*expected, 0], rtol=1e-9)


def spread_of_samples(process: Process, sampler: str, steps: int, spacing: str, std: float, rounded: bool) -> float:
    """Deviation of 4,000 samples over that of the data N(0.3, std^2), by its exact denoiser or epsilon in bf16."""
    draw = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(1, 4000, generator=draw, dtype=torch.float64)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        x0 = 0.3 + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * 0.3)
        if not rounded:
            return x0
        epsilon = ((x - alpha * x0) / sigma).bfloat16().double()
        return predicted_sample(process, epsilon, x, t)

    start = process.schedule.initial_std * noise()
    return float(sample(sampler, denoise, start, process, spaced_times(process, steps, spacing), noise).std()) / std


@pytest.mark.parametrize(
    ("schedule", "sampler", "steps", "spacing"),
    [
        ("linear", "dpmpp_2m", 8, "trailing"),
        ("linear", "ddim", 3, "trailing"),
        ("cosine", "dpmpp_2m", 8, "karras"),
        ("cosine", "ddpm", 640, "trailing"),
    ],
)
def test_epsilon_in_bf16_is_accurate_where_it_is_allowed(schedule, sampler, steps, spacing) -> None:
    process = build_process(schedule, "epsilon")
    Sampling(sampler, steps, spacing).check(process)
    exact, rounded = (spread_of_samples(process, sampler, steps, spacing, 1.0, way) for way in (False, True))
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("schedule", "sampler", "steps", "spacing"),
    [("cosine", "dpmpp_2m", 8, "trailing"), ("cosine", "ddim", 50, "uniform"), ("linear", "ddim", 1, "trailing")],
)
def test_epsilon_is_refused_if_the_first_step_amplifies_errors(schedule, sampler, steps, spacing) -> None:
    process = build_process(schedule, "epsilon")
    with pytest.raises(
        ValueError, match="cannot be used with prediction_type epsilon .*; use spacing karras or more steps"
    ):
        Sampling(sampler, steps, spacing).check(process)
    Sampling(sampler, steps, spacing).check(build_process(schedule, "v_prediction"))
    exact, rounded = (spread_of_samples(process, sampler, steps, spacing, 1.0, way) for way in (False, True))
    assert rounded > exact + 0.2
    Sampling(sampler, 8, safe_spacing(process)).check(process)


@pytest.mark.parametrize("timesteps", [1000, None])
def test_cosine_with_epsilon_needs_about_640_steps(timesteps) -> None:
    process = build_process("cosine", "epsilon", num_train_timesteps=timesteps)
    Sampling("ddpm", 640).check(process)
    with pytest.raises(ValueError, match="600 steps of spacing trailing cannot be used with"):
        Sampling("ddpm", 600).check(process)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_long_last_step_of_uniform_spacing_is_stable(sampler, shift) -> None:
    process = build_process("rectified_flow", "flow", time_shift=shift)
    assert 0.7 < spread_of_samples(process, sampler, 8, "uniform", 0.3, rounded=False) < 1.25
