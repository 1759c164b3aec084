"""Every part of the condition affects the output of every network: single voxels, known flags, attributes."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks_zoo import NAMES, condition_of, make_net
from torch import Tensor

from medaug.diffusion.guidance import Guidance, guided
from medaug.networks.codecs import space_to_depth
from medaug.networks.condition import embed, signed_planes
from medaug.networks.conditional import ConditionalUNet

STRIDES = [(1, 1, 1), (2, 2, 2), (2, 2, 1), (4, 4, 4), (8, 8, 8)]
GRID = 4


def given(label: Tensor, known: Tensor, stride=(1, 1, 1)):
    return condition_of(embed(signed_planes(label, 2), known, stride), torch.zeros(len(label), 2))


@pytest.mark.parametrize("stride", STRIDES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_lesion_of_one_voxel_reaches_the_network(name: str, stride: tuple[int, int, int]) -> None:
    """Wherever in its block the voxel lies, the output depends on it, and its gradient is not zero."""
    block = stride[0] * stride[1] * stride[2]
    net = make_net(name, planes=block + 1, block=block)
    assert net.shape.stem == (32 if block > 8 else 0)
    sides = [GRID * s for s in stride]
    x, t = torch.randn(1, 3, *[GRID] * 3, generator=torch.Generator().manual_seed(2)), torch.tensor([0.5])
    label = torch.zeros(1, *sides, dtype=torch.long)
    healthy = net(x, t, given(label, torch.ones(1, 1), stride))
    corners = list(itertools.product(*({0, s // 2, s - 1} for s in stride)))
    for inside in corners if name == "unet" else corners[-2:]:
        voxel = tuple(s + i for s, i in zip(stride, inside, strict=True))  # in the second block of each axis
        label[0, *voxel] = 1
        out = net(x, t, given(label, torch.ones(1, 1), stride))
        assert (out - healthy).abs().max() > 1e-4 * healthy.abs().max()
        label[0, *voxel] = 0
    plane = torch.full((1, 1, *sides), -1.0, requires_grad=True)
    planes = torch.cat([space_to_depth(plane, stride), torch.ones(1, 1, *x.shape[2:])], dim=1)
    net(x, t, condition_of(planes, torch.zeros(1, 2))).square().mean().backward()
    assert (plane.grad != 0).all(), "there are as many ways for a voxel to be lost as there are voxels"


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_absent_lesion_is_not_an_unknown_one(name: str) -> None:
    """Both are constant in space, so nothing may depend on contrast alone."""
    net, draw = make_net(name), torch.Generator().manual_seed(3)
    x, t, label = torch.randn(1, 3, 8, 8, 8, generator=draw), torch.tensor([0.5]), torch.zeros(1, 8, 8, 8).long()
    absent, unknown = (net(x, t, given(label, torch.full((1, 1), known))) for known in (1.0, 0.0))
    inside = (..., *[slice(3, 5)] * 3)  # far from the border, where zero padding would tell the two apart
    assert (absent - unknown)[inside].abs().max() > 1e-2 * unknown.abs().max()


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_spade_scales_and_shifts_by_constants_too(dims: int) -> None:
    """Park et al. 2019, eq. 1, by hand: the normalised activation times (1 + gamma) plus beta."""
    net = make_net("spade", spatial_dims=dims)
    spade = net.unet.up_blocks[-1].resnets[0].norm1
    sides = [8] * dims
    h, seg = torch.randn(1, spade.param_free_norm.num_channels, *sides), torch.ones(1, 2, *sides)
    normalised = spade.param_free_norm(h)
    conv = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv3d

    def apply(layer, value):
        return conv(value, layer.conv.weight, layer.conv.bias, padding=1)

    hidden = torch.nn.functional.leaky_relu(apply(spade.mlp_shared, seg), 0.01)
    expected = normalised * (1 + apply(spade.mlp_gamma, hidden)) + apply(spade.mlp_beta, hidden)
    torch.testing.assert_close(spade(h, seg), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_attributes_start_neutral_and_learn(name: str) -> None:
    draw = torch.Generator().manual_seed(4)
    x, planes = (torch.randn(2, c, 8, 8, 8, generator=draw) for c in (3, 2))
    t, attributes = torch.tensor([0.2, 0.8]), torch.randn(2, 5, generator=draw)
    net = make_net(name, attributes=5)
    embedding = (net.control if name == "controlnet" else net.unet).class_embedding
    with torch.no_grad():
        embedding.weight.zero_()
    out = net(x, t, condition_of(planes, attributes))
    assert torch.equal(out, net(x, t, condition_of(planes, torch.zeros(2, 5))))
    out.square().mean().backward()
    assert (embedding.weight.grad.abs().amax(0) > 0).all()
    fresh = make_net(name, attributes=5, randomised=False)
    assert (fresh.control if name == "controlnet" else fresh.unet).class_embedding.weight.abs().max() == 0


class Counted:
    """A network whose forwards are counted by their batch sizes."""

    def __init__(self, net: ConditionalUNet) -> None:
        self.net, self.batches = net, []

    def __call__(self, x, t, condition):
        self.batches.append(len(x))
        return self.net(x, t, condition)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_guidance_by_scale_interval_and_negative_in_one_forward(name: str, dims: int) -> None:
    net, draw = Counted(make_net(name, spatial_dims=dims)), torch.Generator().manual_seed(5)
    x, t = torch.randn(2, 3, 4, 4, 4, generator=draw), torch.full((2,), 0.5)
    label = torch.randint(0, 2, (2, 4, 4, 4), generator=draw)
    condition, null = given(label, torch.ones(2, 1)), given(label, torch.zeros(2, 1))
    condition = condition_of(condition.planes, torch.randn(2, 2, generator=draw))
    for negative in (null, condition_of(given(label * 0, torch.ones(2, 1)).planes, condition.attributes)):
        towards, away = net.net(x, t, condition), net.net(x, t, negative)
        assert (towards - away).abs().max() > 1e-2 * away.abs().max()
        for scale, batches in ((0.0, [2]), (1.0, [2]), (3.0, [4])):
            net.batches.clear()
            result = guided(net, condition, negative, Guidance(scale))(x, t)
            torch.testing.assert_close(result, away + scale * (towards - away), atol=1e-4, rtol=1e-4)
            assert net.batches == batches
        net.batches.clear()
        outside = guided(net, condition, negative, Guidance(3.0, (0.6, 0.9)))(x, t)
        assert torch.equal(outside, towards) and net.batches == [2]
