"""The network listens to its image, its time and its mask; in 2D every slice is alone."""

from __future__ import annotations

import pytest
import torch

from medaug.networks.condition import Condition
from medaug.networks.unet import ConcatUNet

SHAPE = (8, 12, 4)


def make_unet(spatial_dims: int, coordinates: bool = False) -> ConcatUNet:
    """MONAI starts with a zero output convolution, so all weights are drawn at random."""
    torch.manual_seed(0)
    net = ConcatUNet(
        spatial_dims=spatial_dims,
        in_channels=3,
        condition_channels=2,
        channels=[8, 16],
        attention=[False, True],
        num_res_blocks=1,
        num_head_channels=8,
        norm_num_groups=4,
        coordinates=coordinates,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def told(planes: torch.Tensor) -> Condition:
    return Condition(planes, torch.zeros(len(planes), 0))


def inputs(num=2):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, *SHAPE, generator=draw)
    condition = torch.randn(num, 2, *SHAPE, generator=draw)
    return x, torch.linspace(0.2, 0.8, num), condition


@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_output_depends_on_every_input(spatial_dims):
    net, (x, t, condition) = make_unet(spatial_dims), inputs()
    out = net(x, t, told(condition))
    assert out.shape == x.shape
    assert torch.equal(out, net(x, t, told(condition)))
    for changed in (
        net(x + 0.1, t, told(condition)),
        net(x, t + 0.01, told(condition)),
        net(x, t, told(condition + 0.1)),
    ):
        assert (changed - out).abs().max() > 1e-3 * out.abs().max()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_samples_of_a_batch_do_not_meet(spatial_dims):
    net, (x, t, condition) = make_unet(spatial_dims), inputs(3)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], told(condition[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(net(x, t, told(condition)), alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_slices_of_a_2d_network_do_not_meet():
    net, (x, t, condition) = make_unet(2), inputs()
    out = net(x, t, told(condition))
    x[:, :, :, :, 1] += 1
    condition[:, :, :, :, 3] -= 1
    moved = (net(x, t, told(condition)) - out).abs().amax(dim=(0, 1, 2, 3))
    assert (moved[[1, 3]] > 1e-2).all()
    assert (moved[[0, 2]] < 1e-5).all()
    one = net(x[..., 2:3], t, told(condition[..., 2:3]))
    torch.testing.assert_close(one, out[..., 2:3], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_3d_network_sees_across_slices():
    net, (x, t, condition) = make_unet(3), inputs()
    out = net(x, t, told(condition))
    condition[:, :, :, :, 1] += 1
    assert (net(x, t, told(condition)) - out)[..., 2].abs().max() > 1e-3


@torch.no_grad()
def test_the_first_and_last_times_are_told_apart():
    """Times lie in [0, 1]; the embedding was made for a thousand steps."""
    net, (x, _, condition) = make_unet(3), inputs(1)
    outs = [net(x, torch.tensor([t]), told(condition)) for t in (0.0, 0.01, 0.5, 0.99, 1.0)]
    gaps = [float((a - b).abs().max()) for a, b in zip(outs, outs[1:], strict=False)]
    assert min(gaps) > 1e-4


@pytest.mark.parametrize("axis", [2, 3, 4])
@torch.no_grad()
def test_coordinates_tell_a_network_where_it_is(axis):
    """The first convolution sees each axis' position; without coordinates a constant input says the same everywhere."""
    x, t, condition = torch.zeros(1, 3, 16, 16, 16), torch.tensor([0.5]), torch.zeros(1, 2, 16, 16, 16)
    for coordinates in (False, True):
        net = make_unet(3, coordinates)
        seen = []
        net.unet.conv_in.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(out))
        net(x, t, told(condition))
        inside = seen[0][:, :, 1:-1, 1:-1, 1:-1]  # beyond, zero padding tells where the border is
        step = inside.diff(dim=axis)
        assert (step.abs().max() > 1e-3) == coordinates
        torch.testing.assert_close(step, step.mean(dim=(2, 3, 4), keepdim=True).expand_as(step), atol=1e-4, rtol=1e-3)
