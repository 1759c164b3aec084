"""A ControlNet begins as its base, leaves it alone, and learns through its control."""

from __future__ import annotations

import copy

import pytest
import torch
from networks_zoo import condition_of, make_net

DIMS = [2, 3]


def with_base(planes=2, randomised=False, **options):
    """A base that is trained, as it were, and a control on it that is not."""
    base = make_net("unet", planes=0, attributes=0, **{key: options[key] for key in options if key != "stem"})
    net = make_net("controlnet", planes=planes, randomised=randomised, **options)
    net.load_state_dict(net.state_dict() | net.matching_weights(base.state_dict()))
    return base, net


def inputs(num=2, sides=(8, 8, 4), planes=2):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, *sides, generator=draw)
    told = condition_of(torch.randn(num, planes, *sides, generator=draw), torch.randn(num, 2, generator=draw))
    nothing = condition_of(torch.zeros(num, 0, *sides), torch.zeros(num, 0))
    return x, torch.linspace(0.2, 0.8, num), told, nothing


@pytest.mark.parametrize("options", [{}, {"coordinates": True}, {"stem": 4}, {"spatial_dims": 2}], ids=str)
@torch.no_grad()
def test_it_begins_as_its_base(options):
    base, net = with_base(**options)
    base.requires_grad_(False)  # torch has other kernels, that round otherwise, for weights in training
    x, t, told, nothing = inputs()
    expected = base(x, t, nothing)
    assert expected.std() > 0.1
    assert torch.equal(net(x, t, told), expected)
    for name, value in net.control.state_dict().items():
        if name.startswith(("down_blocks.", "middle_block.", "time_embed.", "conv_in.")):
            assert torch.equal(value, base.unet.state_dict()[name]), name


def test_training_moves_the_control_and_leaves_the_base():
    base, net = with_base()
    net.train()
    x, t, told, nothing = inputs()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in net.control.parameters()}
    optimiser = torch.optim.AdamW(trained, lr=0.01)
    target, losses = told.planes[:, :1].expand_as(x), []
    for _ in range(30):
        loss = (net(x, t, told) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, net.unet.state_dict()[name]) for name, value in base.unet.state_dict().items())
    with torch.no_grad():
        x, t, other, _ = inputs()
        moved = condition_of(-other.planes, other.attributes)
        assert (net(x, t, moved) - net(x, t, other)).abs().max() > 0.01


@torch.no_grad()
def test_a_conditional_network_is_the_base_that_it_is_under_the_null_condition():
    for options in ({}, {"stem": 4}):
        base = make_net("unet", **options)
        net = make_net("controlnet", randomised=False, **options)
        net.load_state_dict(net.state_dict() | net.matching_weights(base.state_dict()))
        x, t, told, _ = inputs()
        null = condition_of(torch.zeros_like(told.planes), torch.zeros_like(told.attributes))
        torch.testing.assert_close(net(x, t, told), base(x, t, null), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_controlnet_gives_its_control_too_if_all_of_it_fits():
    former = make_net("controlnet")
    same = make_net("controlnet", randomised=False)
    taken = same.matching_weights(former.state_dict())
    assert taken.keys() == same.state_dict().keys()
    assert all(torch.equal(value, former.state_dict()[name]) for name, value in taken.items())
    told = make_net("controlnet", attributes=3, randomised=False)
    told.load_state_dict(told.state_dict() | told.matching_weights(former.state_dict()))
    x, t, condition, _ = inputs()
    nothing = condition_of(condition.planes, torch.zeros(2, 2)), condition_of(condition.planes, torch.randn(2, 3))
    assert torch.equal(told(x, t, nothing[1]), former(x, t, nothing[0])), "new attributes begin at zero"
    wider = make_net("controlnet", planes=3, randomised=False)
    wider.load_state_dict(wider.state_dict() | wider.matching_weights(former.state_dict()))
    x, t, told, _ = inputs(planes=3)
    assert torch.equal(wider(x, t, told), wider.unet(x, 1000 * t)), "a new control begins from the base"


@pytest.mark.parametrize("former", [("spade", {}), ("unet", {"channels": [8, 8]}), ("unet", {"num_res_blocks": 2})])
def test_weights_that_hold_no_base_are_refused(former):
    net = make_net("controlnet")
    name, options = former
    with pytest.raises(ValueError, match="has no base for this ControlNet"):
        net.matching_weights(make_net(name, **options).state_dict())


@torch.no_grad()
def test_a_copy_is_a_network_of_its_own():
    """Weight averaging works on a deep copy."""
    for options in ({}, {"gradient_checkpointing": True}):
        net = make_net("controlnet", **options)
        twin = copy.deepcopy(net)
        for parameter in twin.parameters():
            parameter.zero_()
        x, t, told, _ = inputs()
        assert twin(x, t, told).abs().max() == 0 and net(x, t, told).abs().max() > 0
