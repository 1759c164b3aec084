"""Codecs against written-out formulas and independent libraries; the condition voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pywt
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import AutoencoderKL
from torch.distributions import Normal
from torch.distributions import kl_divergence as kl_between

from medaug.errors import UserError
from medaug.networks.autoencoder import kl_divergence
from medaug.networks.codec_table import build_codec, codec_stride
from medaug.networks.codecs import depth_to_space, space_to_depth, subbands
from medaug.options import CodecOptions

VARIANTS = [({"name": "identity"}, dims) for dims in (2, 3)] + [
    ({"name": "haar", "levels": levels}, dims) for levels in (1, 2, 3) for dims in (2, 3)
]
NAMES = [f"{options['name']}{options.get('levels', '')}-{dims}d" for options, dims in VARIANTS]
variants = pytest.mark.parametrize(("options", "spatial_dims"), VARIANTS, ids=NAMES)


def images(shape, channels=2, num=2, seed=0):
    return torch.randn(num, channels, *shape, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(VARIANTS), st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 3))
@settings(max_examples=20)
def test_decode_is_the_inverse_whatever_the_sides(variant, shape, channels):
    codec = build_codec(variant[0], channels, variant[1])
    x = images(shape, channels)
    codec.fit(3 * x + 1)
    code = codec.encode(x)
    assert code.shape == (2, codec.channels, *(-(-side // s) for side, s in zip(shape, codec.stride, strict=True)))
    torch.testing.assert_close(codec.decode(code, shape), x, atol=1e-5, rtol=1e-5)
    whole = codec.decode(code)
    repeated = np.pad(x, [(0, 0)] * 2 + [(0, m - n) for m, n in zip(whole.shape[2:], shape, strict=True)], mode="edge")
    np.testing.assert_allclose(whole, repeated, atol=1e-5, rtol=1e-5)
    plain = build_codec(variant[0], channels, variant[1])  # a band of padding alone is divided by nearly nothing
    z = torch.randn(code.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain.encode(plain.decode(z)), z, atol=1e-4, rtol=1e-4)


@variants
def test_unstandardised_coefficients_keep_energy_and_angles(options, spatial_dims):
    codec = build_codec(options, 2, spatial_dims)
    a, b = images((8, 16, 8), seed=1).double(), images((8, 16, 8), seed=2).double()
    torch.testing.assert_close((codec.encode(a) * codec.encode(b)).sum(), (a * b).sum().float(), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(codec.mixing @ codec.mixing.T, torch.eye(codec.block))


def by_wavelets(volume, levels, axes):
    """PyWavelets' pyramid in the order of the codec's channels: (block, X/s, Y/s, Z/s), coarse to fine."""
    coarse, *details = pywt.wavedecn(volume, "haar", mode="periodization", level=levels, axes=axes)
    planes = [coarse[None]]
    for level, bands in zip(range(levels, 0, -1), details, strict=True):
        side = 2 ** (levels - level)
        within = [side if axis in axes else 1 for axis in range(3)]
        pattern = "(x i) (y j) (z k) -> (i j k) x y z"
        planes += [rearrange(bands[key], pattern, **dict(zip("ijk", within, strict=True))) for key in sorted(bands)]
    return np.concatenate(planes)


@pytest.mark.parametrize(("spatial_dims", "axes"), [(3, (0, 1, 2)), (2, (0, 1))])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_haar_agrees_with_pywavelets(levels, spatial_dims, axes):
    x = images((8, 16, 24))
    code = build_codec({"name": "haar", "levels": levels}, 2, spatial_dims).encode(x)
    expected = [np.concatenate([by_wavelets(channel.numpy(), levels, axes) for channel in item]) for item in x]
    np.testing.assert_allclose(code, np.stack(expected), atol=1e-5)


def test_channel_order_of_one_level_matches_checkpoints_of_format_2():
    codec = build_codec({"name": "haar"}, 1, 3)
    assert list(codec.state_dict()) == ["mean", "std", "mixing"]
    signs = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    expected = (-1.0) ** (signs @ signs.T) / 8**0.5
    torch.testing.assert_close(codec.mixing, expected)


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


@variants
def test_fitted_subbands_are_standard(options, spatial_dims):
    codec = build_codec(options, 2, spatial_dims)
    scale = torch.tensor([0.1, 3.0]).view(1, 2, 1, 1, 1)
    x = images((8, 16, 8), num=5) * scale - 0.7
    codec.fit(iter(x))
    sizes = subbands(codec.stride) * 2
    for band in codec.encode(x).split(sizes, dim=1):
        assert band.double().mean().abs() < 1e-4
        assert abs(band.double().std(correction=0) - 1) < 1e-4
    for statistic in (codec.mean, codec.std):
        for band in statistic.split(sizes, dim=1):
            assert (band == band[:, :1]).all(), "one subband, one mean and deviation at all positions of the block"


def test_subbands_of_two_levels():
    assert subbands((4, 4, 4)) == [1] * 8 + [8] * 7
    assert subbands((8, 8, 1)) == [1] * 4 + [4] * 3 + [16] * 3


def test_a_constant_channel_stays_finite():
    codec = build_codec({"name": "haar"}, 1, 3)
    codec.fit(torch.full((3, 1, 4, 4, 4), -1.0))
    assert torch.isfinite(codec.encode(torch.full((1, 1, 4, 4, 4), -1.0))).all()


def test_identity_leaves_the_image():
    x = images((3, 5, 7))
    assert torch.equal(build_codec({"name": "identity"}, 2, 3).encode(x), x)


def test_strides():
    assert codec_stride(CodecOptions("haar"), 2) == (2, 2, 1)
    assert codec_stride(CodecOptions("haar", levels=3), 3) == (8, 8, 8)
    assert codec_stride(CodecOptions("identity"), 2) == codec_stride(CodecOptions("identity"), 3) == (1, 1, 1)
    assert codec_stride(CodecOptions("kl", channels=[8, 8]), 3) == (2, 2, 2)
    assert codec_stride(CodecOptions("kl", channels=[8, 8, 8]), 2) == (4, 4, 1)


def test_an_unknown_codec_is_refused_with_one_line():
    with pytest.raises(UserError) as caught:
        build_codec({"name": "wavelet"}, 1, 3)
    assert str(caught.value) == "codec.name=wavelet: no such codec (all: identity, haar, kl)"


def kl_codec(channels=(8, 16), spatial_dims=3, image_channels=2):
    torch.manual_seed(0)
    options = {"name": "kl", "channels": list(channels), "latent_channels": 3}
    return build_codec(options, image_channels, spatial_dims)


@pytest.mark.parametrize(("channels", "spatial_dims"), [((8, 16), 3), ((8, 8, 16), 3), ((8, 16), 2)])
def test_odd_sides_are_rounded_up_in_latents_and_restored(channels, spatial_dims):
    codec, x = kl_codec(channels, spatial_dims), images((9, 12, 7))
    code = codec.encode(x)
    assert code.shape == (2, 3, *(-(-side // s) for side, s in zip(x.shape[2:], codec.stride, strict=True)))
    assert codec.decode(code, x.shape[2:]).shape == x.shape


def test_latent_codec_uses_no_noise_and_has_no_trainable_parameters():
    codec, x = kl_codec(), images((8, 8, 8))
    before = torch.random.get_rng_state()
    assert torch.equal(codec.encode(x), codec.encode(x))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(codec.parameters()) == [] and not codec.decode(codec.encode(x)).requires_grad
    weights = AutoencoderKL(
        3, 2, 2, 1, (8, 16), (False, False), 3, 2, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False
    )
    assert codec.autoencoder.net.state_dict().keys() == weights.state_dict().keys()
    weights.load_state_dict(codec.autoencoder.net.state_dict())
    torch.testing.assert_close(codec.encode(x), weights.encode(x)[0])


def test_latents_are_standardised_by_fitted_statistics_and_decoding_inverts_it():
    codec, x = kl_codec(), images((8, 8, 8), num=5)
    raw = codec.encode(x)
    codec.fit(iter(x))
    code = codec.encode(x)
    torch.testing.assert_close(code.mean((0, 2, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(code.std((0, 2, 3, 4), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(code), codec.autoencoder.decode(raw), atol=1e-4, rtol=1e-4)


def test_a_2d_codec_encodes_each_slice_by_itself():
    codec, x = kl_codec(spatial_dims=2), images((8, 8, 4))
    code = codec.encode(x)
    torch.testing.assert_close(codec.encode(x[..., 1:2]), code[..., 1:2])
    torch.testing.assert_close(codec.decode(code)[..., 2:3], codec.decode(code[..., 2:3]))


def test_kl_divergence_equals_torchs():
    draw = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 3, 4, generator=draw), torch.rand(2, 3, 4, generator=draw) + 0.1
    expected = kl_between(Normal(mean, std), Normal(torch.zeros(()), torch.ones(()))).mean()
    torch.testing.assert_close(kl_divergence(mean, std), expected)
