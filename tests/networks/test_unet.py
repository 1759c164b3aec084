"""The output of every network depends on image, time, mask and attributes; in 2D, slices are independent."""

from __future__ import annotations

import pytest
import torch
from networks_zoo import NAMES, condition_of, make_net

SHAPE = (8, 12, 4)
DIMS = [(name, dims) for name in NAMES for dims in (2, 3)]


def inputs(num=2):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, *SHAPE, generator=draw)
    planes = torch.randn(num, 2, *SHAPE, generator=draw)
    return x, torch.linspace(0.2, 0.8, num), condition_of(planes, torch.randn(num, 2, generator=draw))


@pytest.mark.parametrize(("name", "dims"), DIMS)
@torch.no_grad()
def test_output_depends_on_every_input(name, dims):
    net, (x, t, condition) = make_net(name, spatial_dims=dims), inputs()
    planes, attributes = condition.planes, condition.attributes
    out = net(x, t, condition)
    assert out.shape == x.shape
    assert torch.equal(out, net(x, t, condition))
    for changed in (
        net(x + 0.1, t, condition),
        net(x, t + 0.01, condition),
        net(x, t, condition_of(planes + 0.1, attributes)),
        net(x, t, condition_of(planes, attributes + 0.1)),
    ):
        assert (changed - out).abs().max() > 1e-3 * out.abs().max()


@pytest.mark.parametrize(("name", "dims"), DIMS)
@torch.no_grad()
def test_samples_of_a_batch_are_independent(name, dims):
    net, (x, t, condition) = make_net(name, spatial_dims=dims), inputs(3)
    alone = [
        net(x[i : i + 1], t[i : i + 1], condition_of(*(part[i : i + 1] for part in condition[:2]))) for i in range(3)
    ]
    torch.testing.assert_close(net(x, t, condition), torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_slices_of_a_2d_network_are_independent(name):
    net, (x, t, condition) = make_net(name, spatial_dims=2), inputs()
    out = net(x, t, condition)
    one = net(x[..., 2:3], t, condition_of(condition.planes[..., 2:3], condition.attributes))
    torch.testing.assert_close(one, out[..., 2:3], atol=1e-4, rtol=1e-4)
    x[:, :, :, :, 1] += 1
    condition.planes[:, :, :, :, 3] -= 1
    moved = (net(x, t, condition) - out).abs().amax(dim=(0, 1, 2, 3)) / out.abs().max()
    assert (moved[[1, 3]] > 1e-3).all()
    assert (moved[[0, 2]] < 1e-5).all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_3d_network_sees_across_slices(name):
    net, (x, t, condition) = make_net(name), inputs()
    out = net(x, t, condition)
    condition.planes[:, :, :, :, 1] += 1
    assert (net(x, t, condition) - out)[..., 2].abs().max() > 1e-3 * out.abs().max()


@torch.no_grad()
def test_output_differs_between_first_and_last_time():
    """Times lie in [0, 1]; the embedding was made for a thousand steps."""
    net, (x, _, condition) = make_net("unet"), inputs(1)
    outs = [net(x, torch.tensor([t]), condition) for t in (0.0, 0.01, 0.5, 0.99, 1.0)]
    gaps = [float((a - b).abs().max()) for a, b in zip(outs, outs[1:], strict=False)]
    assert min(gaps) > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [2, 3, 4])
@torch.no_grad()
def test_coordinates_make_the_output_depend_on_position(name, axis):
    """The first convolution sees each axis' position; without coordinates a constant input says the same everywhere."""
    x, t = torch.zeros(1, 3, 16, 16, 16), torch.tensor([0.5])
    condition = condition_of(torch.zeros(1, 2, 16, 16, 16), torch.zeros(1, 2))
    for coordinates in (False, True):
        net = make_net(name, coordinates=coordinates)
        seen = []
        net.unet.conv_in.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(out))
        net(x, t, condition)
        inside = seen[0][:, :, 1:-1, 1:-1, 1:-1]  # beyond, zero padding tells where the border is
        step = inside.diff(dim=axis)
        assert (step.abs().max() > 1e-3) == coordinates
        torch.testing.assert_close(step, step.mean(dim=(2, 3, 4), keepdim=True).expand_as(step), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "dims"), DIMS)
@pytest.mark.parametrize("sides", [(5, 7, 3), (1, 2, 1)])
@torch.no_grad()
def test_sides_that_do_not_divide_are_padded_by_their_edge_and_cropped(name, dims, sides):
    net, draw = make_net(name, spatial_dims=dims, channels=[8, 8, 16], attention=[False] * 3), torch.Generator()
    x, planes = (torch.randn(2, c, *sides, generator=draw.manual_seed(c)) for c in (3, 2))
    condition, t = condition_of(planes, torch.ones(2, 2)), torch.tensor([0.2, 0.7])
    out = net(x, t, condition)
    assert out.shape == x.shape and out.isfinite().all()

    def grown(volume):  # by hand, one axis after the other
        for axis in range(2, 2 + dims):
            last = volume.narrow(axis, volume.shape[axis] - 1, 1)
            volume = torch.cat([volume, *[last] * (-volume.shape[axis] % 4)], dim=axis)
        return volume

    whole = net(grown(x), t, condition_of(grown(planes), condition.attributes))
    torch.testing.assert_close(out, whole[..., : sides[0], : sides[1], : sides[2]], atol=1e-4, rtol=1e-4)
