"""The replacement layers compute the same functions as MONAI's layers, with the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import ControlNet, DiffusionModelUNet
from networks_zoo import NAMES, make_net
from torch import nn

from medaug.networks.layers import SelfAttention, UpsampledConv, replace_layers

SIDES = [(1, 1), (3, 1), (1, 4), (2, 7), (5, 4), (3, 1, 1), (8, 1, 3), (1, 2, 3), (4, 3, 2), (5, 7, 5)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_upsampling_equals_the_two_separate_steps(sides, bias):
    torch.manual_seed(0)
    conv = (nn.Conv3d if len(sides) == 3 else nn.Conv2d)(3, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, *sides, dtype=torch.double, requires_grad=True)
    wanted = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    given = UpsampledConv(conv)(x)
    torch.testing.assert_close(given, wanted)
    upstream, leaves = torch.randn_like(wanted), [x, *conv.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(given, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream)
    )


@pytest.mark.parametrize("sides", [(5, 1, 6), (3, 1, 1), (8, 1, 3), (3, 2, 2), (5, 7, 5), (1, 6), (5, 4)])
def test_bf16_gradients_are_correct(sides):
    # 3D volumes of which a level has the first side 2 are left out: the model runs them in float32.
    torch.manual_seed(0)
    conv = (nn.Conv3d if len(sides) == 3 else nn.Conv2d)(16, 16, 3, padding=1)
    x = torch.randn(2, 16, *sides, requires_grad=True)
    leaves = [x, *conv.parameters()]
    wanted = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    upstream = torch.randn_like(wanted)
    with torch.autocast("cpu", torch.bfloat16):
        given = UpsampledConv(conv)(x)
    gradients = torch.autograd.grad(given, leaves, upstream.bfloat16())
    for one, other in zip(gradients, torch.autograd.grad(wanted, leaves, upstream), strict=True):
        assert (one - other).abs().max() < 0.03 * other.abs().max()


def make_attention():
    torch.manual_seed(0)
    return SABlock(hidden_size=24, num_heads=3, qkv_bias=True, use_combined_linear=False)


def test_attention_equals_that_of_monai():
    theirs = make_attention().double()
    ours = SelfAttention(theirs)
    x = torch.randn(2, 7, 24, dtype=torch.double, requires_grad=True)
    wanted, given, upstream = theirs(x), ours(x), torch.randn_like(x)
    torch.testing.assert_close(given, wanted)
    leaves = [x, *theirs.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(given, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream)
    )


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("meta", torch.bfloat16)])
def test_attention_is_computed_in_float32_only_on_cpus(device, dtype, monkeypatch):
    """A tensor on "meta" has shape and type alone, and stands for those of every device but the processor."""
    seen, attend = [], F.scaled_dot_product_attention

    def spy(query, key, value):
        seen.extend((query, key, value))
        return attend(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention = SelfAttention(make_attention()).to(device, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(torch.zeros(2, 7, 24, device=device, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert [part.dtype for part in seen] == [dtype] * 3
    for part in seen:  # what PyTorch's flash kernel for CUDA asks for, besides heads of at most 256 features in eights
        assert part.shape == (2, 3, 7, 8) and part.stride(-1) == 1


@pytest.mark.parametrize("make", [DiffusionModelUNet, ControlNet])
def test_replaced_layers_keep_outputs_and_weight_names_and_order(make):
    options = {"channels": (8, 16, 16), "attention_levels": (False, True, False), "num_res_blocks": 1}
    options |= {"norm_num_groups": 4, "num_head_channels": 8}
    more = {"out_channels": 2} if make is DiffusionModelUNet else {"conditioning_embedding_num_channels": (8,)}
    torch.manual_seed(0)
    net = make(spatial_dims=3, in_channels=2, **options, **more)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    inputs = (torch.randn(2, 2, 8, 4, 8), torch.tensor([10.0, 500.0]))
    inputs += () if make is DiffusionModelUNet else (torch.randn(2, 1, 8, 4, 8),)
    shapes = [(name, value.shape) for name, value in net.named_parameters()]
    with torch.no_grad():
        wanted = net(*inputs)
        replace_layers(net)
        torch.testing.assert_close(net(*inputs), wanted, atol=1e-4, rtol=1e-4)
    assert [(name, value.shape) for name, value in net.named_parameters()] == shapes
    assert sum(isinstance(module, UpsampledConv) for module in net.modules()) == 2 * (make is DiffusionModelUNet)
    # One on the way down, one in the middle, two on the way up.
    assert sum(isinstance(module, SelfAttention) for module in net.modules()) == 2 + 2 * (make is DiffusionModelUNet)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_network_has_these_layers(name, dims):
    modules = list(make_net(name, spatial_dims=dims).modules())
    assert any(isinstance(module, UpsampledConv) for module in modules)
    assert any(isinstance(module, SelfAttention) for module in modules)
    assert not any(isinstance(module, nn.Upsample | SABlock) for module in modules)
