"""Inpainting against the conditional distribution of Gaussian data, known in closed form."""

from __future__ import annotations

import pytest
import torch
from helpers import times

from medaug.diffusion.inpainting import Inpainting, sample_from_noise
from medaug.diffusion.process import build_process
from medaug.diffusion.samplers import SAMPLERS, Sampling, sample

RHO, KNOWN, NUM = 0.9, 1.5, 2000
PROCESSES = [
    build_process("rectified_flow", "flow"),
    build_process("cosine", "v_prediction", num_train_timesteps=None),
    build_process("edm", "edm", sigma_max=20.0),
]
COVARIANCE = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)
REGION = torch.tensor([False, True]).view(1, 1, 2, 1, 1)


def exact(process):
    """E[x_0 | x_t] of two correlated voxels (B, 1, 2, 1, 1): alpha C (alpha^2 C + sigma^2 I)^-1 x_t."""

    def denoise(x, t):
        alpha, sigma = process.alpha(t[:1]), process.sigma(t[:1])
        gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2).double())
        return (x.flatten(1) @ gain.T).view_as(x)

    return denoise


def known_first_voxel(num=NUM, resample=1):
    """Unknown voxels are NaN, so that any use of them would show."""
    image = torch.full((num, 1, 2, 1, 1), float("nan"), dtype=torch.float64)
    image[:, :, 0] = KNOWN
    return Inpainting(image, REGION, resample)


def inpainted(process, name, resample, steps=20):
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(NUM, 1, 2, 1, 1, generator=generator, dtype=torch.float64)

    imposed = known_first_voxel(resample=resample).impose(exact(process), lambda x: x, lambda x: x)
    return sample_from_noise(Sampling(name, steps), imposed, process, noise, resample).flatten(1)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule.name)
@pytest.mark.parametrize("name", SAMPLERS)
def test_region_approaches_its_conditional_distribution_with_more_resampling(process, name):
    """x_2 given x_1 = k is normal with mean rho k and variance 1 - rho^2."""
    errors, variances = [], []
    for resample in (1, 3, 10):
        result = inpainted(process, name, resample)
        assert torch.equal(result[:, 0], torch.full((NUM,), KNOWN, dtype=torch.float64))
        errors.append(abs(float(result[:, 1].mean()) - RHO * KNOWN))
        variances.append(float(result[:, 1].var()))
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.5 * errors[1]
    assert errors[2] < 0.1
    assert abs(variances[2] - (1 - RHO**2)) < 0.1 < variances[0] - (1 - RHO**2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_resampling_once_equals_the_plain_sampler(name):
    process, shape = PROCESSES[0], (3, 1, 2, 1, 1)

    def noise_stream():
        generator = torch.Generator().manual_seed(1)
        return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)

    def run(resample):
        done = []
        return sample_from_noise(
            Sampling(name, 5), exact(process), process, noise_stream(), resample, done.append
        ), done

    noise, done = noise_stream(), []
    plain = sample(name, exact(process), noise(), process, times(5), noise, progress=done.append)
    once, steps = run(1)
    assert torch.equal(plain, once) and steps == done == [1, 2, 3, 4, 5]
    assert run(2)[1] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule.name)
def test_resampling_keeps_the_distribution_without_a_known_part(process):
    """Without a known part, going back and forth must keep the covariance of the data."""
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(NUM, 1, 2, 1, 1, generator=generator, dtype=torch.float64)

    result = sample_from_noise(Sampling("ddim", 40), exact(process), process, noise, resample=2).flatten(1)
    torch.testing.assert_close(result.T.cov(), COVARIANCE, atol=0.12, rtol=0)


def test_resample_below_one_is_refused():
    with pytest.raises(ValueError, match="resample is 0"):
        known_first_voxel(resample=0)
