"""Samplers against closed forms.

For data N(MU, S^2) the optimal denoiser E[x_0 | x_t] is affine in x_t, so a sampler is an affine map of its
noises. The map is read off the sampler exactly, by running it on unit noises; its mean and standard deviation
are compared with a recursion written here in float64 from Bayes' rule and from the papers' own forms.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from medaug.diffusion.process import NOISE_SCHEDULES, PREDICTION_TYPES, Process, predicted_sample
from medaug.diffusion.samplers import SAMPLERS, Denoise, sample, times

MU, S = 0.7, 0.5
STEPS = (10, 50, 1000)
PROCESSES = [
    Process(schedule, prediction)
    for schedule in NOISE_SCHEDULES
    for prediction in PREDICTION_TYPES
    if (schedule, prediction) != ("rectified_flow", "epsilon")
]
RUNS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpmpp_2m", 0.0)]


def name_of(value: object) -> str:
    """Readable test names."""
    return f"{value.noise_schedule}-{value.prediction_type}" if isinstance(value, Process) else str(value)


def levels(schedule: str, steps: int) -> list[tuple[float, float]]:
    """(alpha, sigma) at the sampling times, noise to clean, by the schedules' definitions at T = 1000."""
    t = np.linspace(1, 0, steps + 1)
    if schedule == "rectified_flow":
        return list(zip(1 - t, t, strict=True))
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, 1000)
    else:
        bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])[np.rint(t * 1000).astype(int)]
    return list(zip(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), strict=True))


def optimal(alpha: float, sigma: float) -> tuple[float, float]:
    """(k, c) of E[x_0 | x_t] = k x_t + c."""
    k = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    return k, MU * (1 - k * alpha)


def posterior(now: tuple[float, float], then: tuple[float, float]) -> tuple[float, float, float]:
    """(weight of x_t, weight of x_0, variance) of q(x_s | x_t, x_0), by Bayes' rule from q(x_s | x_0)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = now, then
    if sigma_s == 0:
        return 0.0, alpha_s, 0.0
    ratio = alpha_t / alpha_s
    noise = sigma_t**2 - ratio**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + ratio**2 / noise)
    return variance * ratio / noise, variance * alpha_s / sigma_s**2, variance


def recursion_single_step(sampler: str, eta: float, schedule: str, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of ddpm and ddim samples, propagated step by step."""
    mean, variance = 0.0, 1.0
    for now, then in pairwise(levels(schedule, steps)):
        of_x, of_x0, fresh = posterior(now, then)
        if sampler == "ddim":
            fresh *= eta**2
            of_x = math.sqrt(max(then[1] ** 2 - fresh, 0.0)) / now[1]
            of_x0 = then[0] - of_x * now[0]
        k, c = optimal(*now)
        gain = of_x + of_x0 * k
        mean, variance = gain * mean + of_x0 * c, gain**2 * variance + fresh
    return mean, math.sqrt(variance)


def recursion_dpmpp_2m(schedule: str, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of DPM-Solver++(2M) samples, in the paper's h, r and exponentials."""
    grid = np.array(levels(schedule, steps))
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(grid[:, 0]) - np.log(grid[:, 1]))
    x = np.array([1.0, 0.0])  # x as (factor, constant) over the first noise
    x0_before = np.zeros(2)
    for i in range(steps):
        k, c = optimal(*grid[i])
        x0 = k * x + np.array([0.0, c])
        d = x0
        if 0 < i < steps - 1:
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        x = grid[i + 1, 1] / grid[i, 1] * x - grid[i + 1, 0] * (np.exp(-h[i]) - 1) * d
        x0_before = x0
    return float(x[1]), abs(float(x[0]))


def recursion(sampler: str, eta: float, schedule: str, steps: int) -> tuple[float, float]:
    """The recursion that belongs to a sampler."""
    if sampler == "dpmpp_2m":
        return recursion_dpmpp_2m(schedule, steps)
    return recursion_single_step(sampler, eta, schedule, steps)


def optimal_denoiser(process: Process) -> Denoise:
    """The optimal network for N(MU, S^2), answering in the process's prediction type."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        k = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
        x0 = k * x + MU * (1 - k * alpha)
        noise = (x - alpha * x0) / sigma
        outputs = {
            "epsilon": noise,
            "sample": x0,
            "v_prediction": alpha * noise - sigma * x0,
            "flow": noise - x0,
        }
        return predicted_sample(process, outputs[process.prediction_type], x, t)

    return denoise


def sampled_mean_and_std(sampler: str, eta: float, process: Process, steps: int) -> tuple[float, float]:
    """Read the affine map off the sampler: row 0 gets no noise at all, row j the j-th unit noise alone."""
    unit = iter(torch.eye(steps + 2, dtype=torch.float64)[1:])
    first = next(unit)[:, None]
    ends = sample(sampler, optimal_denoiser(process), first, process, times(steps), lambda: next(unit)[:, None], eta)
    mean = ends[0].item()
    return mean, (ends - mean).norm().item()


@pytest.mark.parametrize(("sampler", "eta"), RUNS)
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_gaussian_data_as_the_recursion_says_and_the_data_at_1000_steps(
    process: Process, sampler: str, eta: float
) -> None:
    errors = []
    for steps in STEPS:
        mean, std = sampled_mean_and_std(sampler, eta, process, steps)
        expected = recursion(sampler, eta, process.noise_schedule, steps)
        np.testing.assert_allclose((mean, std), expected, rtol=1e-8)
        errors.append(abs(std / S - 1))
    assert abs(mean / MU - 1) < 0.02 and errors[-1] < 0.02
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_float32_follows_float64(process: Process, sampler: str) -> None:
    noises = torch.randn(21, 6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(dtype: torch.dtype) -> Tensor:
        draws = iter(noises.to(dtype))
        return sample(sampler, optimal_denoiser(process), next(draws), process, times(20), lambda: next(draws))

    single, double = run(torch.float32), run(torch.float64)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_fewest_steps_stay_finite_and_one_step_is_the_denoised_noise(
    schedule: str, sampler: str, steps: int
) -> None:
    process, x = Process(schedule, "v_prediction"), torch.randn(2, 1)
    denoise = optimal_denoiser(process)
    end = sample(sampler, denoise, x, process, times(steps), lambda: torch.randn(2, 1))
    assert end.isfinite().all()
    if steps == 1:
        torch.testing.assert_close(end, denoise(x, torch.ones(2)))


def test_times_are_trailing() -> None:
    assert times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0] and times(4).dtype == torch.float64
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        times(0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_steps_and_no_graph_is_kept(sampler: str) -> None:
    process = Process("linear", "v_prediction")
    seen: list[int] = []
    weight = torch.ones(1, requires_grad=True)
    end = sample(
        sampler,
        lambda x, t: weight * x,
        torch.ones(1, 1),
        process,
        times(5),
        lambda: torch.zeros(1, 1),
        progress=seen.append,
    )
    assert seen == [1, 2, 3, 4, 5] and not end.requires_grad


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_deterministic_samplers_draw_nothing(sampler: str) -> None:
    def noise() -> Tensor:
        raise AssertionError("drew noise")

    process = Process("cosine", "v_prediction")
    drawn = sample(sampler, optimal_denoiser(process), torch.ones(1, 1), process, times(3), noise)
    assert drawn.isfinite().all()


@pytest.mark.parametrize(
    ("sampler", "eta", "complaint"),
    [
        ("euler", 0.0, "sampler 'euler' is unknown; choose one of ddpm, ddim, dpmpp_2m"),
        ("ddpm", 0.5, "eta is 0.5, but only the sampler ddim reads it"),
        ("dpmpp_2m", 1.0, "only the sampler ddim reads it"),
        ("ddim", 1.5, r"must lie in \[0, 1\]"),
    ],
)
def test_options_that_would_not_be_obeyed_are_refused(sampler: str, eta: float, complaint: str) -> None:
    x = torch.ones(1, 1)
    with pytest.raises(ValueError, match=complaint):
        sample(sampler, lambda x, t: x, x, Process("linear", "sample"), times(2), lambda: x, eta)
