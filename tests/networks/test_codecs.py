"""Codecs against written-out formulas and independent libraries; the condition voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug.networks.codecs import Codec, codec_stride, depth_to_space, space_to_depth

VARIANTS = list(itertools.product(["identity", "haar"], [2, 3]))
even = st.tuples(*[st.integers(1, 4)] * 3).map(lambda sides: tuple(2 * side for side in sides))


def images(shape, channels=2, num=2, seed=0):
    return torch.randn(num, channels, *shape, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(VARIANTS), even, st.integers(1, 3))
@settings(max_examples=30)
def test_decode_is_the_inverse(variant, shape, channels):
    codec = Codec(variant[0], channels, variant[1])
    x = images(shape, channels)
    codec.fit(3 * x + 1)
    code = codec.encode(x)
    expected = [side // s for side, s in zip(shape, codec.stride, strict=True)]
    assert code.shape == (2, codec.channels, *expected)
    torch.testing.assert_close(codec.decode(code), x, atol=1e-5, rtol=1e-5)
    z = torch.randn_like(code)
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unstandardised_coefficients_keep_energy_and_angles(variant):
    codec = Codec(variant[0], 2, variant[1])
    a, b = images((6, 4, 8), seed=1).double(), images((6, 4, 8), seed=2).double()
    torch.testing.assert_close((codec.encode(a) * codec.encode(b)).sum(), (a * b).sum().float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.mixing @ codec.mixing.T, torch.eye(codec.block))


def haar_by_axes(volume, halved):
    """One-level Haar transform written out axis by axis: sums and differences of neighbours over sqrt(2)."""
    bands = [volume]
    for axis in halved:
        even_, odd = slice(0, None, 2), slice(1, None, 2)
        at = [slice(None)] * volume.ndim
        bands = [
            (band[tuple(at[:axis] + [even_])] + sign * band[tuple(at[:axis] + [odd])]) / np.sqrt(2)
            for band in bands
            for sign in (1, -1)
        ]
    return np.stack(bands)


@pytest.mark.parametrize(("spatial_dims", "halved"), [(3, (0, 1, 2)), (2, (0, 1))])
def test_haar_agrees_with_the_separable_formula(spatial_dims, halved):
    x = images((6, 4, 8))
    code = Codec("haar", 2, spatial_dims).encode(x).numpy()
    expected = np.stack([np.concatenate([haar_by_axes(channel.numpy(), halved) for channel in item]) for item in x])
    np.testing.assert_allclose(code, expected, atol=1e-5)


def test_space_to_depth_is_pixel_unshuffle_and_einops():
    x = images((6, 4, 8), channels=3)
    flat = space_to_depth(x, (2, 2, 1))
    for z in range(8):
        assert torch.equal(flat[..., z], torch.nn.functional.pixel_unshuffle(x[..., z], 2))
    pattern = "b c (x i) (y j) (z k) -> b (c i j k) x y z"
    cubes = space_to_depth(x, (2, 2, 2))
    assert torch.equal(cubes, rearrange(x, pattern, i=2, j=2, k=2))
    assert torch.equal(depth_to_space(cubes, (2, 2, 2)), x)
    assert torch.equal(depth_to_space(flat, (2, 2, 1)), x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fitted_channels_are_standard(variant):
    codec = Codec(variant[0], 2, variant[1])
    scale = torch.tensor([0.1, 3.0]).view(1, 2, 1, 1, 1)
    x = images((8, 8, 8), num=5) * scale - 0.7
    codec.fit(iter(x))
    code = codec.encode(x).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(code.mean(1), torch.zeros(codec.channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(code.std(1, correction=0), torch.ones(codec.channels).double(), atol=1e-4, rtol=0)


def test_a_constant_channel_stays_finite():
    codec = Codec("haar", 1)
    codec.fit(torch.full((3, 1, 4, 4, 4), -1.0))
    assert torch.isfinite(codec.encode(torch.full((1, 1, 4, 4, 4), -1.0))).all()


def test_identity_leaves_the_image():
    x = images((3, 5, 7))
    assert torch.equal(Codec("identity", 2).encode(x), x)


def test_strides():
    assert codec_stride("haar", 2) == (2, 2, 1)
    assert codec_stride("haar", 3) == (2, 2, 2)
    assert codec_stride("identity", 2) == codec_stride("identity", 3) == (1, 1, 1)
    with pytest.raises(ValueError, match="haar"):
        codec_stride("wavelet", 3)
