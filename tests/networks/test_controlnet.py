"""A ControlNet initially equals its base, keeps it frozen, and learns through its control."""

from __future__ import annotations

import copy

import pytest
import torch
from networks_zoo import condition_of, make_net

DIMS = [2, 3]


def with_base(planes=2, randomised=False, **options):
    """A base with random weights, as if it were trained, and an untrained control on it."""
    base = make_net("unet", planes=0, attributes=0, **{key: options[key] for key in options if key != "stem"})
    net = make_net("controlnet", planes=planes, randomised=randomised, **options)
    net.load_state_dict(net.state_dict() | net.matching_weights(base.state_dict()))
    return base, net


def inputs(num=2, sides=(8, 8, 4), planes=2):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, *sides, generator=draw)
    condition = condition_of(torch.randn(num, planes, *sides, generator=draw), torch.randn(num, 2, generator=draw))
    nothing = condition_of(torch.zeros(num, 0, *sides), torch.zeros(num, 0))
    return x, torch.linspace(0.2, 0.8, num), condition, nothing


@pytest.mark.parametrize("options", [{}, {"coordinates": True}, {"stem": 4}, {"spatial_dims": 2}], ids=str)
@torch.no_grad()
def test_controlnet_initially_equals_its_base(options):
    base, net = with_base(**options)
    base.requires_grad_(False)  # for weights in training, torch uses other kernels, which round differently
    x, t, condition, nothing = inputs()
    expected = base(x, t, nothing)
    assert expected.std() > 0.1
    assert torch.equal(net(x, t, condition), expected)
    for name, value in net.control.state_dict().items():
        if name.startswith(("down_blocks.", "middle_block.", "time_embed.", "conv_in.")):
            assert torch.equal(value, base.unet.state_dict()[name]), name


@pytest.mark.slow
def test_training_changes_the_control_but_not_the_base():
    base, net = with_base()
    net.train()
    x, t, condition, nothing = inputs()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in net.control.parameters()}
    optimiser = torch.optim.AdamW(trained, lr=0.01)
    target, losses = condition.planes[:, :1].expand_as(x), []
    for _ in range(30):
        loss = (net(x, t, condition) - target).square().mean()
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
def test_a_conditional_network_as_base_acts_as_under_the_null_condition():
    for options in ({}, {"stem": 4}):
        base = make_net("unet", **options)
        net = make_net("controlnet", randomised=False, **options)
        net.load_state_dict(net.state_dict() | net.matching_weights(base.state_dict()))
        x, t, condition, _ = inputs()
        null = condition_of(torch.zeros_like(condition.planes), torch.zeros_like(condition.attributes))
        torch.testing.assert_close(net(x, t, condition), base(x, t, null), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_control_of_another_controlnet_is_copied_only_if_all_of_it_fits():
    former = make_net("controlnet")
    same = make_net("controlnet", randomised=False)
    matching = same.matching_weights(former.state_dict())
    assert matching.keys() == same.state_dict().keys()
    assert all(torch.equal(value, former.state_dict()[name]) for name, value in matching.items())
    with_attributes = make_net("controlnet", attributes=3, randomised=False)
    matching = with_attributes.matching_weights(former.state_dict())
    with_attributes.load_state_dict(with_attributes.state_dict() | matching)
    x, t, condition, _ = inputs()
    nothing = condition_of(condition.planes, torch.zeros(2, 2)), condition_of(condition.planes, torch.randn(2, 3))
    assert torch.equal(with_attributes(x, t, nothing[1]), former(x, t, nothing[0])), "new attributes begin at zero"
    wider = make_net("controlnet", planes=3, randomised=False)
    wider.load_state_dict(wider.state_dict() | wider.matching_weights(former.state_dict()))
    x, t, condition, _ = inputs(planes=3)
    assert torch.equal(wider(x, t, condition), wider.unet(x, 1000 * t)), "a new control begins from the base"


@pytest.mark.parametrize("former", [("spade", {}), ("unet", {"channels": [8, 8]}), ("unet", {"num_res_blocks": 2})])
def test_weights_without_a_base_are_refused(former):
    net = make_net("controlnet")
    name, options = former
    with pytest.raises(ValueError, match="has no base for this ControlNet"):
        net.matching_weights(make_net(name, **options).state_dict())


@torch.no_grad()
def test_a_deep_copy_is_independent():
    """Weight averaging works on a deep copy."""
    for options in ({}, {"gradient_checkpointing": True}):
        net = make_net("controlnet", **options)
        twin = copy.deepcopy(net)
        for parameter in twin.parameters():
            parameter.zero_()
        x, t, condition, _ = inputs()
        assert twin(x, t, condition).abs().max() == 0 and net(x, t, condition).abs().max() > 0
