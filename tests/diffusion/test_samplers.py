"""Samplers against closed forms.

For data N(MU, S^2) the optimal denoiser E[x_0 | x_t] is affine in x_t, so a sampler is an affine map of its
noises. The map is read off the sampler exactly, by running it on unit noises; its mean and standard deviation
are compared with a recursion written here in float64 from Bayes' rule and from the papers' own forms.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import times
from torch import Tensor

from medaug.diffusion.predictions import PREDICTIONS
from medaug.diffusion.process import Process, build_process, predicted_sample
from medaug.diffusion.samplers import SAMPLERS, Denoise, Sampling, sample
from medaug.diffusion.schedules import SCHEDULES as NOISE_SCHEDULES
from medaug.errors import UserError

MU, S = 0.7, 0.5
FEW_STEPS, MANY_STEPS = (10, 50), 1000
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "linear-continuous": {"num_train_timesteps": None},
    "cosine-continuous": {"num_train_timesteps": None},
    "linear-zero_snr": {"zero_terminal_snr": True},
    "cosine-zero_snr": {"zero_terminal_snr": True},
    "linear-continuous-zero_snr": {"num_train_timesteps": None, "zero_terminal_snr": True},
    "cosine-continuous-zero_snr": {"num_train_timesteps": None, "zero_terminal_snr": True},
    "rectified_flow": {},
    "edm": {},
}
PURE_NOISE = {name for name in SCHEDULES if name.endswith("zero_snr")} | {"rectified_flow"}
REFUSED = {(name, "epsilon") for name in PURE_NOISE} | {("edm", "v_prediction")}


def make(schedule: str, prediction: str) -> Process:
    """A process by its name in SCHEDULES."""
    return build_process(schedule.split("-")[0], prediction, **SCHEDULES[schedule])


PROCESSES = [
    (schedule, make(schedule, prediction))
    for schedule in SCHEDULES
    for prediction in PREDICTIONS
    if (schedule, prediction) not in REFUSED
]
# The recursion does not depend on what the network predicts: one process per schedule shows where it converges.
ONE_PER_SCHEDULE = list({schedule: (schedule, process) for schedule, process in PROCESSES}.values())
RUNS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpmpp_2m", 0.0), ("dpmpp_2m_sde", 0.0), ("heun", 0.0)]


def name_of(value: object) -> str:
    """Readable test names."""
    return value.prediction.name if isinstance(value, Process) else str(value)


def levels(schedule: str, steps: int) -> list[tuple[float, float]]:
    """(alpha, sigma) at the trailing times, noise to clean, by the schedules' definitions (tables: T = 1000)."""
    t = np.linspace(1, 0, steps + 1)
    if schedule == "rectified_flow":
        return list(zip(1 - t, t, strict=True))
    if schedule == "edm":
        low, high = 0.002 ** (1 / 7), 80.002 ** (1 / 7)
        sigma = (low + t * (high - low)) ** 7 - 0.002
        sigma[-1] = 0
        return list(zip(np.ones_like(t), sigma, strict=True))
    if "continuous" in schedule:
        if "linear" in schedule:
            alpha_bar = np.exp(-0.1 * t - 9.95 * t**2)
        else:
            bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            alpha_bar = 2.4e-9 + (1 - 2.4e-9) * bar / bar[-1]
        alpha = np.sqrt(alpha_bar)
        if "zero_snr" in schedule:
            alpha = (alpha - alpha[0]) / (1 - alpha[0])
    else:
        if "linear" in schedule:
            betas = np.linspace(1e-4, 0.02, 1000)
        else:
            bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        alphas = np.sqrt(np.cumprod(1 - betas))
        if "zero_snr" in schedule:
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        alpha = np.concatenate([[1.0], alphas])[np.rint(t * 1000).astype(int)]
    return list(zip(alpha, np.sqrt(1 - alpha**2), strict=True))


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
    mean, variance = 0.0, initial_variance(schedule)
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


def initial_variance(schedule: str) -> float:
    """Of x at t = 1."""
    return 80.0**2 if schedule == "edm" else 1.0


def recursion_multistep(sampler: str, schedule: str, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of DPM-Solver++(2M) samples, ODE or SDE, in the paper's h, r and exponentials."""
    grid = np.array(levels(schedule, steps))
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(grid[:, 0]) - np.log(grid[:, 1]))
    x = np.zeros(steps + 2)  # x as weights of the first noise, of each step's fresh noise, and a constant
    x[0] = math.sqrt(initial_variance(schedule))
    x0_before = np.zeros_like(x)
    for i in range(steps):
        k, c = optimal(*grid[i])
        x0 = k * x
        x0[-1] += c
        d = x0
        if 0 < i < steps - 1 and np.isfinite(h[i - 1]):
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        ratio, alpha = grid[i + 1, 1] / grid[i, 1], grid[i + 1, 0]
        if sampler == "dpmpp_2m":
            # alpha_s (e^-h - 1) with e^-h = ratio alpha_t / alpha_s
            x = ratio * x - alpha * (np.exp(-h[i]) - 1) * d
        else:
            x = ratio * np.exp(-h[i]) * x + alpha * (1 - np.exp(-2 * h[i])) * d
            x[i + 1] += grid[i + 1, 1] * math.sqrt(1 - np.exp(-2 * h[i]))
        x0_before = x0
    return float(x[-1]), float(np.linalg.norm(x[:-1]))


def recursion_heun(schedule: str, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of Heun samples: the trapezoid rule for dx = x_0 d alpha + epsilon d sigma."""
    x = np.array([math.sqrt(initial_variance(schedule)), 0.0])

    def slopes(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        k, c = optimal(alpha, sigma)
        x0 = k * x + np.array([0.0, c])
        return np.stack([x0, (x - alpha * x0) / sigma])

    for now, then in pairwise(levels(schedule, steps)):
        step = np.subtract(then, now)
        here = slopes(x, *now)
        mean = here if then[1] == 0 else (here + slopes(x + step @ here, *then)) / 2
        x = x + step @ mean
    return float(x[1]), abs(float(x[0]))


def recursion(sampler: str, eta: float, schedule: str, steps: int) -> tuple[float, float]:
    """The recursion for a sampler."""
    if sampler.startswith("dpmpp_2m"):
        return recursion_multistep(sampler, schedule, steps)
    if sampler == "heun":
        return recursion_heun(schedule, steps)
    return recursion_single_step(sampler, eta, schedule, steps)


def optimal_denoiser(process: Process) -> Denoise:
    """The optimal network for N(MU, S^2); its output has the process's prediction type."""

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
            "edm": edm_target(process, x0, noise, alpha, sigma),
        }
        return predicted_sample(process, outputs[process.prediction.name], x, t)

    return denoise


def edm_target(process: Process, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """(x_0 - c_skip x) / c_out of Karras et al. 2022, table 1, at x_t / alpha and sigma / alpha."""
    sigma, data = sigma / alpha.clamp(min=1e-12), getattr(process.prediction, "sigma_data", 1.0)
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / (sigma**2 + data**2).sqrt()
    return (x0 - c_skip * (x0 + sigma * noise)) / c_out


def sampled_mean_and_std(sampler: str, eta: float, process: Process, steps: int) -> tuple[float, float]:
    """Read the affine map off the sampler: row 0 gets no noise at all, row j the j-th unit noise alone."""
    unit = iter(torch.eye(steps + 2, dtype=torch.float64)[1:])
    first = process.schedule.initial_std * next(unit)[:, None]
    ends = sample(
        sampler,
        optimal_denoiser(process),
        first,
        process,
        times(steps),
        lambda: next(unit)[:, None],
        {"eta": eta} if eta else None,
    )
    mean = ends[0].item()
    return mean, (ends - mean).norm().item()


@pytest.mark.parametrize(("sampler", "eta"), RUNS)
@pytest.mark.parametrize(("schedule", "process"), PROCESSES, ids=name_of)
def test_moments_of_gaussian_data_follow_the_recursion(
    schedule: str, process: Process, sampler: str, eta: float
) -> None:
    for steps in FEW_STEPS:
        expected = recursion(sampler, eta, schedule, steps)
        np.testing.assert_allclose(sampled_mean_and_std(sampler, eta, process, steps), expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "eta"), RUNS)
@pytest.mark.parametrize(("schedule", "process"), ONE_PER_SCHEDULE, ids=name_of)
def test_moments_of_gaussian_data_match_recursion_and_data_at_1000_steps(
    schedule: str, process: Process, sampler: str, eta: float
) -> None:
    mean, std = sampled_mean_and_std(sampler, eta, process, MANY_STEPS)
    np.testing.assert_allclose((mean, std), recursion(sampler, eta, schedule, MANY_STEPS), rtol=1e-8)
    error = abs(std / S - 1)
    assert abs(mean / MU - 1) < 0.02 and error < 0.02
    assert error < abs(recursion(sampler, eta, schedule, FEW_STEPS[0])[1] / S - 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("schedule", "process"), PROCESSES, ids=name_of)
def test_float32_agrees_with_float64(schedule: str, process: Process, sampler: str) -> None:
    noises = torch.randn(21, 6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(dtype: torch.dtype) -> Tensor:
        draws = iter(noises.to(dtype))
        first = process.schedule.initial_std * next(draws)
        return sample(sampler, optimal_denoiser(process), first, process, times(20), lambda: next(draws))

    single, double = run(torch.float32), run(torch.float64)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_fewest_steps_stay_finite_and_one_step_is_the_denoised_noise(
    schedule: str, sampler: str, steps: int
) -> None:
    process = build_process(schedule, "flow")
    x = process.schedule.initial_std * torch.randn(2, 1)
    denoise = optimal_denoiser(process)
    end = sample(sampler, denoise, x, process, times(steps), lambda: torch.randn(2, 1))
    assert end.isfinite().all()
    if steps == 1:
        torch.testing.assert_close(end, denoise(x, torch.ones(2)))


def test_times_are_trailing() -> None:
    process = build_process("cosine", "sample")
    grid = Sampling(steps=4).times(process)
    assert grid.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0] and grid.dtype == torch.float64
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        Sampling(steps=0).times(process)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_steps_and_no_graph_is_kept(sampler: str) -> None:
    process = build_process("linear", "v_prediction")
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


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_deterministic_samplers_use_no_noise(sampler: str) -> None:
    def noise() -> Tensor:
        raise AssertionError("drew noise")

    process = build_process("cosine", "v_prediction")
    result = sample(sampler, optimal_denoiser(process), torch.ones(1, 1), process, times(3), noise)
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("sampler", "eta", "complaint"),
    [
        ("ddpm", 0.5, "eta is 0.5, but the sampler ddpm does not read it; only ddim does"),
        ("dpmpp_2m", 1.0, "only ddim does"),
        ("heun", 1.0, "only ddim does"),
        ("ddim", 1.5, r"must lie in \[0, 1\]"),
    ],
)
def test_options_that_the_sampler_does_not_read_are_refused(sampler: str, eta: float, complaint: str) -> None:
    x = torch.ones(1, 1)
    with pytest.raises(ValueError, match=complaint):
        sample(sampler, lambda x, t: x, x, build_process("linear", "sample"), times(2), lambda: x, {"eta": eta})


def test_an_unknown_sampler_is_refused_with_all_names() -> None:
    names = "dpmpp_2m, dpmpp_2m_sde, heun, ddim, ddpm"
    with pytest.raises(UserError, match=rf"^sampler.name=euler: no such sampler.*\(all: {names}\)"):
        Sampling("euler").check(build_process("linear", "sample"))


def test_number_of_evaluations_matches_the_table_entry() -> None:
    process = build_process("rectified_flow", "flow")
    for name in SAMPLERS:
        calls: list[float] = []

        def denoise(x: Tensor, t: Tensor, calls: list[float] = calls) -> Tensor:
            calls.append(float(t[0]))
            return x

        sample(name, denoise, torch.ones(1, 1), process, times(5), lambda: torch.zeros(1, 1))
        assert len(calls) == SAMPLERS[name].evaluations(5), name
