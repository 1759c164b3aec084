"""Orders of convergence of the samplers on a mixture of two Gaussians, whose denoiser is known and not affine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import spaced_times, times
from torch import Tensor

from medaug.diffusion.process import Process, build_process
from medaug.diffusion.samplers import Denoise, sample

pytestmark = pytest.mark.slow

MEANS, STD = torch.tensor([-1.0, 0.8], dtype=torch.float64), 0.3
PROCESSES = [
    build_process("linear", "sample", num_train_timesteps=None),
    build_process("cosine", "sample", num_train_timesteps=None),
    build_process("linear", "sample", num_train_timesteps=None, zero_terminal_snr=True),
    build_process("rectified_flow", "flow"),
    build_process("edm", "edm"),
]


def mixture_denoiser(process: Process) -> Denoise:
    """E[x_0 | x_t] for x_0 from two Gaussians of equal weight: the mean of both, weighted by their likelihoods."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
        variance = alpha**2 * STD**2 + sigma**2
        distance = x[..., None] - alpha * MEANS
        likely = torch.softmax(-(distance**2) / (2 * variance), dim=-1)
        return (likely * (MEANS + alpha * STD**2 / variance * distance)).sum(-1)

    return denoise


def error_orders(name: str, process: Process, first: float, last: float, steps: tuple[int, ...]) -> list[float]:
    """log2 of the ratio of errors when the steps between two times are doubled."""
    t = torch.tensor([first], dtype=torch.float64)
    spread = (process.alpha(t) + process.sigma(t)).item()
    x = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)[None] * spread

    def run(name: str, n: int) -> Tensor:
        grid = last + (first - last) * times(n)
        return sample(name, mixture_denoiser(process), x, process, grid, lambda: torch.zeros_like(x))

    truth = run("heun", 4096)
    errors = [(run(name, n) - truth).abs().mean().item() for n in steps]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize(("name", "order"), [("ddim", 1.0), ("dpmpp_2m", 2.0), ("heun", 2.0)])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.schedule.title}")
def test_order_of_convergence_between_two_noisy_times(process: Process, name: str, order: float) -> None:
    orders = error_orders(name, process, 0.8, 0.2, (128, 256, 512))
    np.testing.assert_allclose(orders, order, atol=0.15)
    assert abs(orders[-1] - order) < 0.1


@pytest.mark.parametrize(("name", "order"), [("ddim", 1.0), ("heun", 2.0)])
def test_order_of_convergence_from_pure_noise_to_clean(name: str, order: float) -> None:
    """On rectified flow, whose alpha is 0 at one end and whose sigma is 0 at the other."""
    np.testing.assert_allclose(
        error_orders(name, build_process("rectified_flow", "flow"), 1.0, 0.0, (64, 128, 256)), order, atol=0.2
    )


def test_heun_evaluates_twice_a_step_but_once_on_the_last() -> None:
    process, calls = build_process("edm", "edm"), []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return mixture_denoiser(process)(x, t)

    x = torch.full((1, 1), 80.0, dtype=torch.float64)
    sample("heun", denoise, x, process, spaced_times(process, 5, "karras"), lambda: x)
    assert len(calls) == 2 * 5 - 1 and min(calls) > 0


def test_sde_solver_samples_a_mixture_better_than_ancestral_sampling() -> None:
    process = build_process("cosine", "v_prediction")
    draw = torch.Generator().manual_seed(0)
    side = 20_000

    def noise() -> Tensor:
        return torch.randn(1, side, generator=draw, dtype=torch.float64)

    def spread(name: str) -> float:
        x = sample(name, mixture_denoiser(process), noise(), process, times(25), noise)[0]
        assert abs((x > -0.1).double().mean().item() - 0.5) < 0.03
        return x[x > -0.1].std().item()

    errors = {name: abs(spread(name) / STD - 1) for name in ("ddpm", "dpmpp_2m_sde")}
    assert errors["dpmpp_2m_sde"] < 0.02 and errors["dpmpp_2m_sde"] < errors["ddpm"] / 2
