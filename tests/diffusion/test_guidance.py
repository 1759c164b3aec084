"""Guidance: its formula, its number of forward passes, and its effect on a distribution known in closed form."""

from __future__ import annotations

import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from helpers import times
from torch import Tensor

from medaug.diffusion.guidance import Guidance, guided
from medaug.diffusion.process import build_process
from medaug.diffusion.samplers import sample

CONDITION, NULL = torch.full((3, 1, 2, 2), 2.0), torch.zeros(3, 1, 2, 2)


class Network:
    """A denoiser that keeps the batch sizes it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Depend on all arguments, sample by sample, not linearly."""
        self.batches.append(len(x))
        return torch.tanh(x + condition) * (1 + t.reshape(-1, 1, 1, 1)) + condition**2


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 1.5, 7.0])
def test_guidance_formula_needs_one_forward_pass_at_any_scale(scale: float) -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    conditional, null = network(x, t, CONDITION), network(x, t, NULL)
    result = guided(network, CONDITION, NULL, Guidance(scale))(x, t)
    torch.testing.assert_close(result, null + scale * (conditional - null))
    assert network.batches == [3, 3, 3 if scale in (0.0, 1.0) else 6]


@pytest.mark.parametrize(("scale", "only"), [(1.0, CONDITION), (0.0, NULL)])
def test_scales_one_and_zero_equal_the_two_models_bit_for_bit(scale: float, only: Tensor) -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.full((3,), 0.5)
    assert torch.equal(guided(network, CONDITION, NULL, Guidance(scale))(x, t), network(x, t, only))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_moves_class_means_apart_in_proportion_to_the_scale(scale: float) -> None:
    """For data N(condition, 1) the guided denoiser is that of N(scale * condition, 1)."""
    process = build_process("cosine", "v_prediction")

    def denoise(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        alpha = process.alpha(t).reshape(-1, 1, 1, 1)
        return alpha * x + (1 - alpha**2) * condition  # E[x_0 | x_t] where alpha^2 + sigma^2 = 1

    mean = sample(
        "ddim",
        guided(denoise, CONDITION, NULL, Guidance(scale)),
        torch.zeros_like(CONDITION),
        process,
        times(1000),
        lambda: torch.zeros(()),
    )
    torch.testing.assert_close(mean, scale * CONDITION, rtol=0.01, atol=1e-6)


def test_conditions_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        guided(Network(), CONDITION, NULL[:1], Guidance(2.0))


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_only_the_conditional_model_runs_outside_the_interval(scale: float) -> None:
    network, x = Network(), torch.randn(3, 1, 2, 2)
    denoise = guided(network, CONDITION, NULL, Guidance(scale, (0.3, 0.7)))
    for time in (0.29, 0.71, 1.0):
        t = torch.full((3,), time)
        assert torch.equal(denoise(x, t), network(x, t, CONDITION))
    assert network.batches == [3] * 6
    network.batches.clear()
    for time in (0.3, 0.5, 0.7):
        t = torch.full((3,), time, dtype=torch.float64)
        torch.testing.assert_close(denoise(x, t), guided(network, CONDITION, NULL, Guidance(scale))(x, t))
    assert network.batches == [3 if scale == 0 else 6] * 6


def test_interval_applies_to_each_sample_by_its_own_time() -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    together = guided(network, CONDITION, NULL, Guidance(3.0, (0.3, 0.7)))(x, t)
    everywhere, nowhere = guided(network, CONDITION, NULL, Guidance(3.0))(x, t), network(x, t, CONDITION)
    torch.testing.assert_close(together, torch.stack([nowhere[0], everywhere[1], nowhere[2]]))


def test_sampling_runs_the_second_branch_only_inside_the_interval() -> None:
    network, process = Network(), build_process("rectified_flow", "flow")
    denoise = guided(network, CONDITION, NULL, Guidance(2.0, (0.35, 0.75)))
    sample("dpmpp_2m", denoise, torch.randn(3, 1, 2, 2), process, times(10), lambda: torch.zeros(()))
    assert network.batches == [3, 3, 3, 6, 6, 6, 6, 3, 3, 3]  # at 1.0, 0.9, ..., 0.1


@pytest.mark.parametrize("rescale", [0.3, 1.0])
@pytest.mark.parametrize("scale", [0.0, 2.0, 7.0])
def test_rescaling_equals_that_of_diffusers(scale: float, rescale: float) -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    towards = network(x, t, CONDITION)
    expected = rescale_noise_cfg(guided(network, CONDITION, NULL, Guidance(scale))(x, t), towards, rescale)
    actual = guided(network, CONDITION, NULL, Guidance(scale, rescale=rescale))(x, t)
    torch.testing.assert_close(actual, expected)
    if rescale == 1:
        torch.testing.assert_close(actual.flatten(1).std(1), towards.flatten(1).std(1))


def test_scale_one_never_needs_a_second_branch() -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.full((3,), 0.5)
    result = guided(network, CONDITION, NULL, Guidance(1.0, (0.2, 0.8), 0.7))(x, t)
    assert torch.equal(result, network(x, t, CONDITION)) and network.batches == [3, 3]


@pytest.mark.parametrize(
    ("interval", "rescale", "complaint"),
    [
        ((0.5, 0.5), 0.0, r"guidance_interval is \[0.5, 0.5\]"),
        ((-0.1, 0.5), 0.0, "increasing times"),
        ((0.5, 1.1), 0.0, "increasing times"),
        (None, 1.5, "guidance_rescale is 1.5"),
        (None, -0.1, "guidance_rescale is -0.1"),
    ],
)
def test_invalid_guidance_is_refused(interval: tuple[float, float] | None, rescale: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        guided(Network(), CONDITION, NULL, Guidance(2.0, interval, rescale))
