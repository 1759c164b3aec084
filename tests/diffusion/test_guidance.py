"""Guidance: its algebra, its cost in forward calls, and its effect on a distribution known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medaug.diffusion.guidance import guided
from medaug.diffusion.process import Process
from medaug.diffusion.samplers import sample, times

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
def test_algebra_and_one_forward_whatever_the_scale(scale: float) -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    conditional, null = network(x, t, CONDITION), network(x, t, NULL)
    result = guided(network, CONDITION, NULL, scale)(x, t)
    torch.testing.assert_close(result, null + scale * (conditional - null))
    assert network.batches == [3, 3, 3 if scale in (0.0, 1.0) else 6]


@pytest.mark.parametrize(("scale", "only"), [(1.0, CONDITION), (0.0, NULL)])
def test_scale_one_and_zero_are_the_two_models_bit_for_bit(scale: float, only: Tensor) -> None:
    network, x, t = Network(), torch.randn(3, 1, 2, 2), torch.full((3,), 0.5)
    assert torch.equal(guided(network, CONDITION, NULL, scale)(x, t), network(x, t, only))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_classes_of_one_width_are_pushed_apart_in_proportion(scale: float) -> None:
    """For data N(condition, 1) the guided denoiser is that of N(scale * condition, 1)."""
    process = Process("cosine", "v_prediction")

    def denoise(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        alpha = process.alpha(t).reshape(-1, 1, 1, 1)
        return alpha * x + (1 - alpha**2) * condition  # E[x_0 | x_t] where alpha^2 + sigma^2 = 1

    mean = sample(
        "ddim",
        guided(denoise, CONDITION, NULL, scale),
        torch.zeros_like(CONDITION),
        process,
        times(1000),
        lambda: torch.zeros(()),
    )
    torch.testing.assert_close(mean, scale * CONDITION, rtol=0.01, atol=1e-6)


def test_conditions_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        guided(Network(), CONDITION, NULL[:1], 2.0)
