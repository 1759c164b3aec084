"""Invalid options are refused with their key; saving memory changes no result; attention uses torch's kernel."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from networks_zoo import NAMES, OPTIONS, condition_of, make_net
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medaug.errors import UserError
from medaug.networks.build import build_network
from medaug.networks.unet import ConcatUNet


def inputs(sides=(8, 8, 8)):
    draw = torch.Generator().manual_seed(1)
    x, planes = (torch.randn(2, c, *sides, generator=draw) for c in (3, 2))
    return x, torch.tensor([0.2, 0.7]), condition_of(planes, torch.randn(2, 2, generator=draw))


def test_old_options_build_the_network_of_their_time():
    net = build_network(OPTIONS | {"coordinates": True}, 8, 9, 0, 8)
    assert isinstance(net, ConcatUNet)
    assert all(name.startswith("unet.") for name in net.state_dict())
    assert net.unet.conv_in.conv.in_channels == 8 + 9 + 3 and "unet.class_embedding.weight" not in net.state_dict()


@pytest.mark.parametrize(("stem", "block", "features"), [(None, 8, 0), (None, 9, 32), (0, 64, 0), (5, 1, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_a_stem_is_added_if_requested_or_if_blocks_are_large(name, stem, block, features):
    net = make_net(name, block=block, stem=stem)
    assert net.shape.stem == features
    assert ("stem.0.weight" in net.state_dict()) == bool(features)
    assert net.stem(torch.zeros(1, 2, 1, 1, 1)).abs().max() == 0, "nothing known stays nothing"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"channels": [8, 18]}, "network.channels has 18 features, not a multiple of network.norm_num_groups=4"),
        ({"channels": [8, 20]}, "20 features at a level with attention .* network.num_head_channels=8"),
        ({"channels": [8, 20], "attention": [False, False]}, "20 features .*the last one always has it"),
        ({"channels": [12, 16], "attention": [True, False]}, "12 features at a level with attention"),
        ({"channels": [8]}, "network.channels has 1 levels and network.attention 2"),
    ],
    ids=str,
)
def test_options_that_monai_cannot_build_are_refused_with_their_key(name, options, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make_net(name, **options)
    assert "\n" not in str(caught.value)


def test_unknown_network_and_control_without_condition_are_refused():
    with pytest.raises(UserError, match=r"network.name=vit: no such network.*\(all: unet, spade, controlnet\)"):
        make_net("vit")
    for name in ("spade", "controlnet"):
        with pytest.raises(ValueError, match=f"network.name={name}: this task has no condition"):
            make_net(name, planes=0)
    with pytest.raises(ValueError, match="network.stem=4: has no effect"):
        make_net("unet", planes=0, stem=4)


class PeakMemory(TorchDispatchMode):
    """Peak number of bytes of all tensors that were made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.seen:
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self.seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims"), [(name, 3) for name in NAMES] + [("unet", 2)])
def test_gradient_checkpointing_keeps_all_bits_and_saves_memory(name, dims):
    results, peaks, saved = [], [], []
    for checkpointing in (False, True):
        net = make_net(name, spatial_dims=dims, num_res_blocks=3, gradient_checkpointing=checkpointing)
        x, t, condition = inputs((16, 16, 16))
        x.requires_grad_()
        kept: dict[int, int] = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with PeakMemory() as memory:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                out = net(x, t, condition)
            out.square().mean().backward()
        saved.append(sum(kept.values()))
        peaks.append(memory.peak)
        results.append([out, x.grad, *(p.grad for p in net.parameters() if p.requires_grad)])
    assert len(results[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert saved[1] < 0.5 * saved[0]
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize("name", NAMES)
def test_attention_uses_the_flash_kernel(name, monkeypatch):
    """Run the CPU version of this kernel, forward and backward, with no other kernel allowed."""
    seen, attend = [], F.scaled_dot_product_attention

    def spy(query, key, value):
        seen.append(query.shape[2])
        return attend(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    net, (x, t, condition) = make_net(name, attention=[True, False]), inputs((4, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        net(x, t, condition).square().mean().backward()
    # level 1: one block on the way down, two on the way up; and the middle. The control has the way down once more.
    assert len(seen) == (1 + 2 + 1) + (2 if name == "controlnet" else 0)
    assert set(seen) == {64, 8}, "level 1 and the middle, which has attention in any case"
