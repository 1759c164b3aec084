"""The moving average has the profile of Karras et al. 2024, in closed form, from the first step."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch.optim.swa_utils import AveragedModel

from medaug.training.averaging import PowerFunctionAverage, power_function_exponent


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.15, 0.25, 0.28])
def test_exponent_gives_the_requested_relative_width(sigma_rel):
    gamma = power_function_exponent(sigma_rel)
    # the density (gamma + 1) s^gamma on [0, 1], by quadrature
    s = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * s**gamma / len(s)
    mean = (density * s).sum()
    assert math.isclose(math.sqrt((density * (s - mean) ** 2).sum()), sigma_rel, rel_tol=1e-4)


def test_the_exponents_of_the_paper():
    assert power_function_exponent(0.05) == pytest.approx(16.97, abs=0.01)  # its figures for 5% and 10%
    assert power_function_exponent(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_average_weights_steps_by_the_power_profile(sigma_rel):
    """Step i of T counts as the integral of the profile over its interval: (i^g - (i - 1)^g) / T^g, g = gamma + 1."""
    steps = 40
    model = torch.nn.Linear(steps, 1, bias=False).double()
    average = AveragedModel(model, **PowerFunctionAverage(sigma_rel)._kwargs)
    for i in range(steps):
        with torch.no_grad():
            model.weight.copy_(torch.eye(steps)[i : i + 1])
        average.update_parameters(model)
        power = power_function_exponent(sigma_rel) + 1
        edges = (np.arange(steps + 1).clip(max=i + 1) / (i + 1)) ** power
        np.testing.assert_allclose(average.module.weight.detach()[0], np.diff(edges), atol=1e-12)


def test_the_average_is_on_the_device_of_the_model():
    """Lightning moves the model after the callbacks are set up; beside it, no step has to carry the weights over."""
    module, averaging = LightningModule(), PowerFunctionAverage(0.1)
    module.line = torch.nn.Linear(2, 1)
    averaging.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta"))), module, "fit")
    assert all(parameter.is_meta for parameter in averaging._average_model.parameters())
    assert not any(parameter.is_meta for parameter in module.parameters())
