"""The fused upsampling is the upsampling and the convolution that it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DiffusionModelUNet
from networks_zoo import NAMES, make_net
from torch import nn

from medaug.networks.upsampling import UpsampledConv, fuse_upsampling

SIDES = [(1, 1), (3, 1), (1, 4), (2, 7), (5, 4), (3, 1, 1), (8, 1, 3), (1, 2, 3), (4, 3, 2), (5, 7, 5)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_two_steps(sides, bias):
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
def test_gradients_in_bf16_are_sound(sides):
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


def test_a_network_says_the_same_and_keeps_the_names_of_its_weights():
    options = {"channels": (8, 16, 16), "attention_levels": (False,) * 3, "num_res_blocks": 1, "norm_num_groups": 4}
    torch.manual_seed(0)
    net = DiffusionModelUNet(spatial_dims=3, in_channels=2, out_channels=2, num_head_channels=8, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 2, 8, 4, 8), torch.tensor([10.0, 500.0])
    with torch.no_grad():
        wanted, shapes = net(x, t), {name: value.shape for name, value in net.state_dict().items()}
        fuse_upsampling(net)
        torch.testing.assert_close(net(x, t), wanted, atol=1e-4, rtol=1e-4)
    assert {name: value.shape for name, value in net.state_dict().items()} == shapes
    assert sum(isinstance(module, UpsampledConv) for module in net.modules()) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_network_upsamples_so(name, dims):
    modules = list(make_net(name, spatial_dims=dims).modules())
    assert any(isinstance(module, UpsampledConv) for module in modules)
    assert not any(isinstance(module, nn.Upsample) for module in modules)
