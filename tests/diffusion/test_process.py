"""The forward process against its step-by-step definition, and the objectives against their own inverse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medaug.diffusion.predictions import PREDICTIONS
from medaug.diffusion.process import (
    add_noise,
    build_process,
    predicted_sample,
    training_target,
)
from medaug.diffusion.schedules import SCHEDULES as NOISE_SCHEDULES
from medaug.errors import UserError

VARIANCE_PRESERVING = ("linear", "cosine")
REFUSED = {("rectified_flow", "epsilon"), ("edm", "v_prediction")}
PAIRS = [
    (schedule, prediction)
    for schedule in NOISE_SCHEDULES
    for prediction in PREDICTIONS
    if (schedule, prediction) not in REFUSED
]


def betas(schedule: str, steps: int) -> np.ndarray:
    """The papers' betas, one by one."""
    if schedule == "linear":
        return np.linspace(1e-4 * 1000 / steps, 0.02 * 1000 / steps, steps)

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING)
def test_marginals_equal_the_composition_of_all_single_steps(schedule: str, steps: int) -> None:
    mean, variance, expected = 1.0, 0.0, [(1.0, 0.0)]
    for beta in betas(schedule, steps):  # x_i = sqrt(1 - beta) x_(i-1) + sqrt(beta) epsilon
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        expected.append((mean, math.sqrt(variance)))
    process = build_process(schedule, "v_prediction", num_train_timesteps=steps)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    np.testing.assert_allclose(torch.stack([process.alpha(t), process.sigma(t)], 1), expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", [*VARIANCE_PRESERVING, "rectified_flow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_level_increases_monotonically_from_exactly_clean(schedule: str, dtype: torch.dtype) -> None:
    process = build_process(schedule, "sample")
    t = torch.linspace(0, 1, 5001, dtype=dtype)  # between the table's times too
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert alpha.dtype == sigma.dtype == dtype
    assert alpha[0] == 1 and sigma[0] == 0 and alpha[-1] < 0.01 and sigma[-1] > 0.999
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all() and (sigma[:100].diff() > 0).all()
    if schedule in VARIANCE_PRESERVING:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING)
def test_signal_to_noise_hardly_depends_on_the_number_of_levels(schedule: str) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    coarse, fine = (build_process(schedule, "sample", num_train_timesteps=steps).alpha(t) for steps in (1000, 4000))
    torch.testing.assert_close(coarse, fine, rtol=0.02, atol=0)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    pair=st.sampled_from(PAIRS),
    times=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    rest=st.lists(st.integers(1, 3), min_size=0, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_predicted_sample_inverts_training_target(
    pair: tuple[str, str], times: list[float], rest: list[int], seed: int
) -> None:
    process, t = build_process(*pair), torch.tensor(times, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, len(times), *rest, generator=generator, dtype=torch.float64)
    x_t = add_noise(process, x0, noise, t)
    target = training_target(process, x0, noise, t)
    torch.testing.assert_close(predicted_sample(process, target, x_t, t), x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_each_sample_has_its_own_time_and_the_target_its_definition(pair: tuple[str, str]) -> None:
    process, t = build_process(*pair), torch.tensor([0.1, 0.5, 1.0])
    x0, noise = torch.randn(2, 3, 2, 4, 5, 6)
    x_t, target = add_noise(process, x0, noise, t), training_target(process, x0, noise, t)
    for i, (a, s) in enumerate(zip(process.alpha(t), process.sigma(t), strict=True)):
        torch.testing.assert_close(x_t[i], a * x0[i] + s * noise[i])
        scale = (a**2 + s**2).sqrt()
        by_name = {
            "epsilon": noise[i],
            "sample": x0[i],
            "v_prediction": a * noise[i] - s * x0[i],
            "flow": noise[i] - x0[i],
            "edm": (s * x0[i] - a * noise[i]) / scale,
        }
        torch.testing.assert_close(target[i], by_name[pair[1]])


@pytest.mark.parametrize("pair", PAIRS)
def test_arithmetic_is_float32_for_half_precision_and_float64_for_float64(pair: tuple[str, str]) -> None:
    process = build_process(*pair)
    for given_dtype, used in [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]:
        x, t = torch.randn(2, 1, 3, 3).to(given_dtype), torch.tensor([0.0, 1.0])
        results = [function(process, x, x, t) for function in (add_noise, training_target, predicted_sample)]
        assert [result.dtype for result in results] == [used] * 3
        assert all(result.isfinite().all() for result in results)
    assert process.alpha(torch.tensor(0.5, dtype=torch.bfloat16)).dtype == torch.float32


def test_tables_created_in_inference_mode_can_be_used_in_training() -> None:
    process, t = build_process("cosine", "epsilon", num_train_timesteps=321), torch.tensor([0.3])
    with torch.inference_mode():
        process.alpha(t)
    output = torch.ones(1, 2, requires_grad=True)
    predicted_sample(process, output, torch.ones(1, 2), t).sum().backward()
    torch.testing.assert_close(output.grad, (-process.sigma(t) / process.alpha(t)).expand(1, 2))


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING)
def test_training_times_are_uniform_over_the_table(schedule: str) -> None:
    steps = 40
    t = build_process(schedule, "epsilon", num_train_timesteps=steps).schedule.training_times(
        20_000, torch.Generator().manual_seed(0)
    )
    assert t.dtype == torch.float32 and t.shape == (20_000,)
    level = t * steps
    torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-5)
    counts = np.bincount(level.round().int().numpy(), minlength=steps + 1)
    assert counts[0] == 0 and len(counts) == steps + 1
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


def test_training_times_of_rectified_flow_are_logit_normal_and_seeded() -> None:
    process = build_process("rectified_flow", "flow")
    t, again = (process.schedule.training_times(20_000, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(t, again)
    assert stats.kstest(torch.logit(t).numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("names", "options", "complaint"),
    [
        (("linear", "epsilon"), {"num_train_timesteps": 20}, "needs more than 20"),
        (("cosine", "epsilon"), {"num_train_timesteps": 0}, "at least 1, or null"),
        (("rectified_flow", "epsilon"), {}, "cannot be used with noise_schedule rectified_flow"),
        (
            ("linear", "epsilon"),
            {"zero_terminal_snr": True},
            "epsilon cannot be used with .* linear with zero_terminal_snr",
        ),
        (("rectified_flow", "flow"), {"zero_terminal_snr": True}, "rectified_flow does not read it"),
        (("cosine", "sample"), {"num_train_timesteps": 1, "zero_terminal_snr": True}, "needs at least 2"),
        (("edm", "v_prediction"), {}, "v_prediction cannot be used with noise_schedule edm"),
        (("edm", "edm"), {"sigma_min": 80.0, "sigma_max": 1.0}, "sigma_min and sigma_max are 80 and 1"),
        (("edm", "edm"), {"sigma_data": 0.0}, "sigma_data is 0"),
        (("linear", "edm"), {"sigma_data": 0.0}, "sigma_data is 0"),
        (("linear", "flow"), {"gamma": 3.0}, "gamma is 3.0, but noise_schedule linear does not read it"),
        (("linear", "flow"), {"parameters": ["power"]}, "parameters has 'power'; write each option once, as in"),
    ],
)
def test_invalid_combinations_are_refused_with_their_names(
    names: tuple[str, str], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_process(*names, **options)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            ("quadratic", "flow"),
            r"process.noise_schedule=quadratic: no such noise schedule.*\(all: linear, cosine",
        ),
        (
            ("linear", "score"),
            r"process.prediction_type=score: no such prediction type.*\(all: epsilon, sample",
        ),
        (("linear", "flow", "snr"), r"process.loss_weight=snr: no such loss weight.*\(all: uniform, min_snr\)"),
    ],
)
def test_unknown_names_are_refused_with_all_names(names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build_process(*names)


def test_process_options_of_old_checkpoints_may_have_unused_keys() -> None:
    node = {"noise_schedule": "cosine", "prediction_type": "v_prediction", "num_train_timesteps": 100}
    edm = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.5, "log_sigma_mean": 0.0, "log_sigma_std": 1.0}
    assert build_process(**node, time_shift=1.0, zero_terminal_snr=False, **edm) == build_process(**node)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_time_shift_divides_the_signal_to_noise_ratio(shift):
    process = build_process("rectified_flow", "flow", time_shift=shift)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    moved = process.schedule.shifted(t)
    ratio = (process.alpha(t) / process.sigma(t)) / (process.alpha(moved) / process.sigma(moved))
    torch.testing.assert_close(ratio, torch.full_like(t, shift))
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(process.schedule.shifted(ends), ends)
    draws = process.schedule.training_times(20_000, torch.Generator().manual_seed(0)).double()
    logits = torch.logit(draws)
    assert abs(logits.mean() - math.log(shift)) < 0.03 and abs(logits.std() - 1) < 0.03


@pytest.mark.parametrize(("schedule", "shift"), [("linear", 3.0), ("rectified_flow", 0.0), ("rectified_flow", -1.0)])
def test_invalid_time_shift_is_refused(schedule, shift):
    with pytest.raises(ValueError, match="time_shift"):
        build_process(schedule, "v_prediction", time_shift=shift)
