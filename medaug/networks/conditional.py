"""What the three networks share: how a condition gets in, 2D slices, sides of any length, attention, memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medaug.networks.condition import Condition

_HEAR_PLANES = ("stem.", "mlp_shared.", "controlnet_cond_embedding.")
"""In the names of tensors that meet nothing but planes: of the stem, of SPADE, of the ControlNet."""


@dataclass(frozen=True)
class UNetShape:
    """The make of a U-Net, whichever way its condition enters.

    Attributes:
        spatial_dims: 2 or 3.
        channels: features per level; each divides by `norm_num_groups`.
        attention: self-attention per level. The middle, at the sides of the last level, has it always.
        num_res_blocks: residual blocks per level.
        num_head_channels: features per attention head; divides the features of the last level and of those with
            attention.
        norm_num_groups: groups of the group normalisation.
        coordinates: the position of each voxel, -1 to 1 along each axis, as three more input channels (Liu et al.
            2018, CoordConv): convolutions do not know where they are, and in an aligned cohort anatomy does.
        stem: features of the learned stem of the condition's planes; 0: none.
        gradient_checkpointing: keep only what enters each block, and compute the rest again in the backward pass.

    Raises:
        ValueError: names the key of what cannot be built.
    """

    spatial_dims: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    num_res_blocks: int
    num_head_channels: int
    norm_num_groups: int
    coordinates: bool = False
    stem: int = 0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"network.channels has {len(self.channels)} levels and network.attention {len(self.attention)}; "
                "give one of each per level"
            )
        for level, (width, attends) in enumerate(zip(self.channels, self.attention, strict=True)):
            if width % self.norm_num_groups:
                raise ValueError(
                    f"network.channels has {width} features, not a multiple of "
                    f"network.norm_num_groups={self.norm_num_groups}"
                )
            if (attends or level == len(self.channels) - 1) and width % self.num_head_channels:
                raise ValueError(
                    f"network.channels has {width} features at a level with attention (the last one has it always), "
                    f"not a multiple of network.num_head_channels={self.num_head_channels}"
                )

    @property
    def multiple(self) -> int:
        """What the sides are padded to a multiple of: each level halves them."""
        return 2 ** (len(self.channels) - 1)

    def monai(self) -> dict[str, Any]:
        """Arguments that MONAI's U-Nets and ControlNet share."""
        return {
            "spatial_dims": self.spatial_dims,
            "channels": self.channels,
            "attention_levels": self.attention,
            "num_res_blocks": self.num_res_blocks,
            "num_head_channels": self.num_head_channels,
            "norm_num_groups": self.norm_num_groups,
        }


class ConditionalUNet(nn.Module, ABC):
    """A denoising U-Net behind net(x, t, condition).

    In 2D every slice along the third axis is a sample of its own: the depth is folded into the batch, so data, codecs
    and samplers stay three-dimensional. Sides that the levels cannot halve are padded by repeating the edge, and the
    result is cropped.

    The stem is a linear map of all the planes at a position, without bias, and SiLU. As the planes hold every voxel of
    the block at that position, this is the patch embedding of a vision transformer (Dosovitskiy et al. 2021, eq. 1)
    with the codec's stride as the patch: each voxel has weights of its own, so none can vanish. The null condition,
    all zero, stays zero.

    Args:
        shape: of the U-Net.
        in_channels: C, channels of x.
        condition_channels: K, channels of `Condition.planes`; 0 for a network without them.
        attribute_channels: A, length of `Condition.attributes`; 0 for a network without them.
    """

    def __init__(self, shape: UNetShape, in_channels: int, condition_channels: int, attribute_channels: int) -> None:
        super().__init__()
        self.shape = shape
        self.attribute_channels = attribute_channels
        self.stem: nn.Module = nn.Identity()
        self.planes = condition_channels
        if shape.stem and condition_channels:
            self.stem = nn.Sequential(nn.Conv3d(condition_channels, shape.stem, 1, bias=False), nn.SiLU())
            self.planes = shape.stem
        self.parts = (in_channels, self.planes, 3 * shape.coordinates)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predict from x (B, C, X, Y, Z), times t (B,) in [0, 1] and a condition of x's sides: (B, C, X, Y, Z)."""
        # The sinusoidal embedding was made for step numbers up to a thousand.
        steps, attributes = 1000 * t, condition.attributes if self.attribute_channels else None
        places = [_positions(x)] if self.shape.coordinates else []
        inputs = torch.cat([x, self.stem(condition.planes), *places], dim=1)
        b, _, *sides = inputs.shape
        if self.shape.spatial_dims == 2:
            inputs = inputs.permute(0, 4, 1, 2, 3).flatten(0, 1)
            steps = steps.repeat_interleave(sides[2])
            attributes = None if attributes is None else attributes.repeat_interleave(sides[2], dim=0)
        inner = inputs.shape[2:]
        missing = [-side % self.shape.multiple for side in inner]
        if any(missing):
            inputs = F.pad(inputs, [pad for end in reversed(missing) for pad in (0, end)], mode="replicate")
        out = self.run(inputs, steps, attributes)
        for axis, side in enumerate(inner, start=2):
            out = out.narrow(axis, 0, side)
        if self.shape.spatial_dims == 2:
            return out.reshape(b, sides[2], -1, *inner).permute(0, 2, 3, 4, 1)
        return out

    def level_sides(self, side: int) -> list[int]:
        """A side of the volumes that 3D convolutions get to see where x has that side: x's own, then each level's."""
        padded = side + -side % self.shape.multiple
        levels = [padded >> level for level in range(len(self.shape.channels))]
        return [side, *(levels if self.shape.spatial_dims == 3 else ())]

    @abstractmethod
    def run(self, inputs: Tensor, steps: Tensor, attributes: Tensor | None) -> Tensor:
        """The output (N, C, *sides) for inputs (N, sum(parts), *sides): the channels of x, of planes, of positions.

        steps: (N,), 0 to 1000. attributes: (N, A), or None for a network without them.
        """

    def adopt(self, weights: Mapping[str, Tensor], same_planes: bool = True) -> dict[str, Tensor]:
        """Those of another network's weights that fit this one, by their names here.

        A tensor fits if name and shape do. The first convolution fits also where the planes differ: x and positions
        keep their weights, and the planes' are 0. The null condition is all zero, so the network begins with what the
        other one said to that.

        Args:
            weights: of the other network.
            same_planes: whether its planes, if they are as many, mean the same.
        """
        own = self.state_dict()
        taken = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        if not same_planes:
            taken = {name: value for name, value in taken.items() if not any(part in name for part in _HEAR_PLANES)}
        name = "unet.conv_in.conv.weight"
        theirs, x, last = weights.get(name), self.parts[0], self.parts[2]
        stems = [name for name in (*own, *weights) if name.startswith("stem.")]
        same = same_planes and name in taken and all(stem in taken for stem in stems)
        if theirs is not None and not same and theirs.shape[1] >= x + last:
            fitted = torch.zeros_like(own[name])
            if theirs.shape[0] == fitted.shape[0] and theirs.shape[2:] == fitted.shape[2:]:
                fitted[:, :x] = theirs[:, :x]
                fitted[:, fitted.shape[1] - last :] = theirs[:, theirs.shape[1] - last :]
                taken[name] = fitted
        return taken


def add_attributes(net: nn.Module, attribute_channels: int) -> None:
    """Let a MONAI network add attributes (B, A) to its time embedding, by a linear map that starts at zero.

    It takes the place of MONAI's embedding of a class number. Without bias: attributes that are all zero, unknown,
    add nothing.
    """
    if attribute_channels:
        width = net.time_embed[-1].out_features  # type: ignore[index, union-attr]
        net.class_embedding = nn.Linear(attribute_channels, width, bias=False)
        nn.init.zeros_(net.class_embedding.weight)
        net.num_class_embeds = attribute_channels  # type: ignore[assignment]


def checkpoint_blocks(net: nn.Module) -> None:
    """Make every block of a MONAI U-Net or ControlNet forget its inside until the backward pass (Chen et al. 2016)."""
    for block in (*net.down_blocks, net.middle_block, *getattr(net, "up_blocks", ())):  # type: ignore[misc]
        # Nothing inside draws random numbers, so there is no generator to put back.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _positions(x: Tensor) -> Tensor:
    """(B, 3, X, Y, Z): where each voxel of x (B, C, X, Y, Z) lies, -1 to 1 along each axis."""
    axes = [torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1, -1)
