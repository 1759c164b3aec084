"""Continuous time, zero terminal SNR and EDM against the papers' formulas; weights of the loss against their limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import rescale_zero_terminal_snr
from scipy import stats

from medaug.diffusion.process import Process, add_noise, build_process, loss_weight, predicted_sample, training_target

ENDS = torch.tensor([0.0, 1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_continuous_time_is_the_limit_of_many_levels(shape: str, zero_terminal_snr: bool) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    continuous = build_process(shape, "sample", num_train_timesteps=None, zero_terminal_snr=zero_terminal_snr)
    differences = []
    for steps in (1000, 10_000):
        table = build_process(shape, "sample", num_train_timesteps=steps, zero_terminal_snr=zero_terminal_snr)
        difference = torch.log(table.alpha(t) / table.sigma(t)) - torch.log(continuous.alpha(t) / continuous.sigma(t))
        differences.append(difference.abs().max().item())
    assert max(differences) < 0.06 and differences[1] < 0.006


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_continuous_time_is_smooth_and_exact_at_its_ends(
    shape: str, zero_terminal_snr: bool, dtype: torch.dtype
) -> None:
    process = build_process(shape, "sample", num_train_timesteps=None, zero_terminal_snr=zero_terminal_snr)
    t = torch.linspace(0, 1, 5001, dtype=dtype)
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert alpha.dtype == sigma.dtype == dtype
    assert alpha[0] == 1 and sigma[0] == 0
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all() and (sigma[:100].diff() > 0).all()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    if zero_terminal_snr:
        assert alpha[-1] == 0 and sigma[-1] == 1
    elif shape == "linear":
        assert alpha[-1].item() == pytest.approx(math.exp(-20.1 / 4), rel=1e-5)  # beta from 0.1 to 20
    else:
        assert alpha[-1].item() ** 2 == pytest.approx(2.4e-9, rel=1e-4)
        assert build_process(shape, "sample").alpha(t)[-1].item() ** 2 == pytest.approx(2.4e-9, rel=0.02)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_continuous_training_times_are_uniform_and_never_clean(shape: str) -> None:
    t = build_process(shape, "epsilon", num_train_timesteps=None).schedule.training_times(20_000, seeded())
    assert t.dtype == torch.float32 and t.min() > 0 and t.max() <= 1
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_zero_terminal_snr_is_algorithm_1(shape: str, steps: int) -> None:
    plain, process = (
        build_process(shape, "v_prediction", num_train_timesteps=steps, zero_terminal_snr=flag)
        for flag in (False, True)
    )
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = plain.alpha(t) ** 2
    rescaled = rescale_zero_terminal_snr(1 - alpha_bar[1:] / alpha_bar[:-1])  # from betas, computed by diffusers
    expected = torch.cumprod(1 - rescaled, 0).sqrt()
    torch.testing.assert_close(process.alpha(t[1:]), expected, rtol=1e-9, atol=1e-12)
    assert process.alpha(ENDS).tolist() == [1, 0] and process.sigma(ENDS).tolist() == [0, 1]
    between = process.alpha(torch.linspace(0, 1, 20 * steps + 1, dtype=torch.float64))
    assert between.isfinite().all() and (between.diff() < 0).all()


def edm(**fields: Any) -> Process:
    """As in table 1 of the paper, except where stated."""
    values = {"sigma_data": 0.5, "log_sigma_mean": -1.2, "log_sigma_std": 1.2} | fields
    return build_process("edm", values.pop("prediction_type", "edm"), num_train_timesteps=None, **values)


def test_edm_is_table_1() -> None:
    process, t = edm(), torch.linspace(0.05, 1, 20, dtype=torch.float64)
    sigma, data = process.sigma(t), 0.5
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / (data**2 + sigma**2).sqrt()
    torch.testing.assert_close(process.schedule.input_scale(t), 1 / (sigma**2 + data**2).sqrt())
    torch.testing.assert_close(process.schedule.network_time(t), sigma.log() / 4)
    x, output = torch.randn(2, 20, 3, generator=seeded(), dtype=torch.float64)
    expected = c_skip[:, None] * x + c_out[:, None] * output
    torch.testing.assert_close(predicted_sample(process, output, x, t), expected)


def test_edms_uniform_weight_on_its_output_is_lambda_on_x0() -> None:
    process, t = edm(), torch.linspace(0.05, 1, 20, dtype=torch.float64)
    x0, noise, output = torch.randn(3, 20, 4, generator=seeded(), dtype=torch.float64)
    x_t = add_noise(process, x0, noise, t)
    in_output = (output - training_target(process, x0, noise, t)).square()
    in_x0 = (predicted_sample(process, output, x_t, t) - x0).square()
    sigma = process.sigma(t)[:, None]
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2  # lambda(sigma) of table 1
    torch.testing.assert_close(in_output, weight * in_x0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rectified_flow", "edm"])
def test_the_edm_target_has_unit_variance_at_every_time_of_every_schedule(schedule: str) -> None:
    process, data = build_process(schedule, "edm", sigma_data=0.5), 0.5
    x0, noise = torch.randn(2, 9, 200_000, generator=seeded(), dtype=torch.float64)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    target = training_target(process, data * x0, noise, t)
    np.testing.assert_allclose(target.std(1), 1, atol=0.01)


def test_on_a_variance_preserving_schedule_the_edm_target_is_minus_v() -> None:
    x0, noise = torch.randn(2, 5, 3, generator=seeded(), dtype=torch.float64)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    targets = [training_target(build_process("cosine", name), x0, noise, t) for name in ("edm", "v_prediction")]
    torch.testing.assert_close(targets[0], -targets[1])


def test_edm_trains_at_log_normal_levels_within_its_range() -> None:
    sigma = edm().sigma(edm().schedule.training_times(20_000, seeded()))
    assert stats.kstest((sigma.log().numpy() + 1.2) / 1.2, "norm").pvalue > 1e-3
    narrow = edm(sigma_min=0.1, sigma_max=1.0)
    sigma = narrow.sigma(narrow.schedule.training_times(2000, seeded()))
    assert sigma.min().item() == pytest.approx(0.1, rel=1e-4) and sigma.max().item() == pytest.approx(1.0, rel=1e-4)


def test_edm_runs_from_clean_to_sigma_max_with_finite_network_inputs() -> None:
    process = edm(sigma_min=0.01, sigma_max=30.0)
    t = torch.linspace(0, 1, 2001)
    sigma = process.sigma(t)
    assert sigma[0] == 0 and sigma[-1].item() == pytest.approx(30.0) and (sigma.diff() > 0).all()
    assert process.schedule.initial_std == 30.0
    least = torch.tensor([process.schedule.least_time])
    assert process.sigma(least).item() == pytest.approx(0.01, rel=1e-4)
    time = process.schedule.network_time(t)
    assert time.isfinite().all() and time.min().item() == pytest.approx(math.log(0.01) / 4)
    assert process.schedule.input_scale(t).max().item() == pytest.approx(2.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rectified_flow"])
def test_other_schedules_do_not_scale_network_inputs(schedule: str) -> None:
    process, t = build_process(schedule, "sample"), torch.linspace(0, 1, 9)
    assert torch.equal(process.schedule.network_time(t), t)
    assert torch.equal(process.schedule.input_scale(t), torch.ones(9)) and process.schedule.initial_std == 1


MIN_SNR = {  # of Hang et al. 2023 in terms of the SNR; flow by hand
    "sample": lambda snr: snr.clamp(max=5),
    "epsilon": lambda snr: snr.clamp(max=5) / snr,
    "v_prediction": lambda snr: snr.clamp(max=5) / (snr + 1),
    "edm": lambda snr: snr.clamp(max=5) / (snr + 1),
    "flow": lambda snr: snr.clamp(max=5) / (snr.sqrt() + 1) ** 2,
}


@pytest.mark.parametrize("prediction", MIN_SNR)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_min_snr_weights_are_the_papers(schedule: str, prediction: str) -> None:
    process = build_process(schedule, prediction, loss_weight="min_snr")
    t = torch.linspace(0.01, 1, 30, dtype=torch.float64)
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    torch.testing.assert_close(loss_weight(process, t), MIN_SNR[prediction](snr))
    assert torch.equal(loss_weight(build_process(schedule, prediction), t), torch.ones_like(t))


@pytest.mark.parametrize(
    ("schedule", "prediction", "options"),
    [
        ("linear", "epsilon", {}),
        ("cosine", "epsilon", {"num_train_timesteps": None}),
        ("cosine", "v_prediction", {"zero_terminal_snr": True}),
        ("rectified_flow", "flow", {}),
        ("rectified_flow", "sample", {}),
        ("edm", "edm", {}),
    ],
)
def test_weights_and_gradients_are_finite_at_the_ends_of_time(
    schedule: str, prediction: str, options: dict[str, Any]
) -> None:
    """The network answers in bf16; target, weight and x_0 are float32."""
    process = build_process(schedule, prediction, loss_weight="min_snr", **options)
    for t in (ENDS, torch.tensor([1e-6, 1 - 1e-6])):
        x0, noise = torch.randn(2, 2, 4, generator=seeded())
        weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
        x_t = add_noise(process, x0, noise, t)
        output = weight * (process.schedule.input_scale(t)[:, None] * x_t).bfloat16()
        assert loss_weight(process, t).isfinite().all()
        error = (output.float() - training_target(process, x0, noise, t)).square().mean(1)
        loss = (loss_weight(process, t) * error).mean() + predicted_sample(process, output, x_t, t).mean()
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert weight.grad is not None and weight.grad.isfinite().all()


def test_pure_noise_has_weight_zero_except_with_epsilon() -> None:
    zero = build_process("linear", "v_prediction", zero_terminal_snr=True, loss_weight="min_snr")
    assert loss_weight(zero, ENDS).tolist() == [0.0, 0.0]
    noisy = loss_weight(build_process("cosine", "epsilon", loss_weight="min_snr"), ENDS[1:])
    assert noisy.item() == pytest.approx(1.0, rel=1e-4)
