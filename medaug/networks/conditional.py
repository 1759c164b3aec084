"""The base class of the networks: condition planes and their stem, 2D slices, padding, coordinates, attributes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medaug.networks.condition import Condition
from medaug.tables import Ranges

_PLANE_WEIGHTS = ("stem.", "mlp_shared.", "controlnet_cond_embedding.")
"""Fragments of the names of weights that only see condition planes, in the stem, SPADE and the ControlNet."""


@dataclass(frozen=True)
class UNetShape:
    """The shape of a U-Net, apart from how its condition enters.

    Attributes:
        spatial_dims: 2 or 3.
        channels: features per level; each must be a multiple of `norm_num_groups`.
        attention: whether each level has self-attention. The middle block, whose sides are those of the last level,
            always has it.
        num_res_blocks: residual blocks per level.
        num_head_channels: features per attention head; the features of the last level and of levels with attention
            must be multiples of it.
        norm_num_groups: groups of the group normalisation.
        coordinates: whether the position of each voxel in the whole volume, -1 to 1 along each axis, is given as three
            more input channels (Liu et al. 2018, CoordConv). Convolutions do not know positions, but in aligned scans
            the anatomy depends on them.
        stem: features of the learned stem of the condition's planes; 0: no stem.
        gradient_checkpointing: whether to store only the inputs of each block and compute the rest again in the
            backward pass.

    Raises:
        ValueError: a network that cannot be built; names the key.
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
                    f"network.channels has {width} features at a level with attention (the last one always has it), "
                    f"not a multiple of network.num_head_channels={self.num_head_channels}"
                )

    @property
    def multiple(self) -> int:
        """The number that sides must be multiples of, because each level halves them; other sides are padded."""
        return 2 ** (len(self.channels) - 1)

    def monai(self) -> dict[str, Any]:
        """The arguments that MONAI's U-Nets and ControlNet have in common."""
        return {
            "spatial_dims": self.spatial_dims,
            "channels": self.channels,
            "attention_levels": self.attention,
            "num_res_blocks": self.num_res_blocks,
            "num_head_channels": self.num_head_channels,
            "norm_num_groups": self.norm_num_groups,
        }


class ConditionalUNet(nn.Module, ABC):
    """A denoising U-Net with the signature net(x, t, condition).

    A 2D network processes each slice along the third axis by itself: the depth is folded into the batch, so that data,
    codecs and samplers stay three-dimensional. Sides that the levels cannot halve are padded by repeating the edge, and
    the result is cropped.

    The stem is a linear map, without bias, of all planes at a position, followed by SiLU. Since the planes contain
    every voxel of the block at that position, this is the patch embedding of a vision transformer (Dosovitskiy et al.
    2021, eq. 1) with the codec's block as the patch: each voxel has its own weights, so none is lost. The null
    condition, which is all zero, stays zero.

    Args:
        shape: shape of the U-Net.
        in_channels: number C of channels of x.
        condition_channels: number K of channels of `Condition.planes`; 0 for a network without planes.
        attribute_channels: length A of `Condition.attributes`; 0 for a network without attributes.

    Attributes:
        options: range of further arguments, all numbers, which `network.parameters` sets.
        defaults: values that network=NAME gives to other keys of `network`.
    """

    options: ClassVar[Ranges] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}

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
        """The prediction (B, C, X, Y, Z) for x (B, C, X, Y, Z), times t (B,) in [0, 1] and a condition of x's sides."""
        # The sinusoidal embedding was designed for step numbers up to 1000.
        steps, attributes = 1000 * t, condition.attributes if self.attribute_channels else None
        positions = [_positions(x, condition.place)] if self.shape.coordinates else []
        inputs = torch.cat([x, self.stem(condition.planes), *positions], dim=1)
        b, _, *sides = inputs.shape
        if self.shape.spatial_dims == 2:
            inputs = rearrange(inputs, "b c x y z -> (b z) c x y")
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
            return rearrange(out, "(b z) c x y -> b c x y z", b=b)
        return out

    def level_sides(self, side: int) -> list[int]:
        """The lengths of one side in the 3D convolutions: x's own length `side`, then that at each level."""
        padded = side + -side % self.shape.multiple
        levels = [padded >> level for level in range(len(self.shape.channels))]
        return [side, *(levels if self.shape.spatial_dims == 3 else ())]

    @abstractmethod
    def run(self, inputs: Tensor, steps: Tensor, attributes: Tensor | None) -> Tensor:
        """Compute the output (N, C, *sides).

        Args:
            inputs: (N, sum(parts), *sides), the channels of x, of the planes and of the positions.
            steps: (N,) times, 0 to 1000.
            attributes: (N, A), or None for a network without attributes.
        """

    def matching_weights(self, weights: Mapping[str, Tensor], same_planes: bool = True) -> dict[str, Tensor]:
        """The weights of another network that fit this one, by their names in this network.

        A tensor fits if its name and shape match. The first convolution also fits if only the planes differ: the
        weights of x and of the positions are kept, and those of the planes are 0. At first the network then gives the
        output that the other one has for the null condition, whatever the planes.

        Args:
            weights: weights of the other network.
            same_planes: whether equally many planes of the two networks also have the same meaning.
        """
        own = self.state_dict()
        matching = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
        if not same_planes:
            matching = {k: value for k, value in matching.items() if not any(part in k for part in _PLANE_WEIGHTS)}
        name = "unet.conv_in.conv.weight"
        theirs, x, last = weights.get(name), self.parts[0], self.parts[2]
        stems = [name for name in (*own, *weights) if name.startswith("stem.")]
        same = same_planes and name in matching and all(stem in matching for stem in stems)
        if theirs is not None and not same and theirs.shape[1] >= x + last:
            fitted = torch.zeros_like(own[name])
            if theirs.shape[0] == fitted.shape[0] and theirs.shape[2:] == fitted.shape[2:]:
                fitted[:, :x] = theirs[:, :x]
                fitted[:, fitted.shape[1] - last :] = theirs[:, theirs.shape[1] - last :]
                matching[name] = fitted
        return matching


def add_attributes(net: nn.Module, attribute_channels: int) -> None:
    """Make a MONAI network add attributes (B, A) to its time embedding, by a linear map that is initialised with zero.

    The map replaces MONAI's embedding of a class number. It has no bias, so that unknown attributes, which are all
    zero, add nothing.
    """
    if attribute_channels:
        width = net.time_embed[-1].out_features  # type: ignore[index, union-attr]
        net.class_embedding = nn.Linear(attribute_channels, width, bias=False)
        nn.init.zeros_(net.class_embedding.weight)
        net.num_class_embeds = attribute_channels  # type: ignore[assignment]


def checkpoint_blocks(net: nn.Module) -> None:
    """Turn on gradient checkpointing for every block of a MONAI U-Net or ControlNet (Chen et al. 2016).

    A block then stores its inputs only, and computes its activations again in the backward pass.
    """
    for block in (*net.down_blocks, net.middle_block, *getattr(net, "up_blocks", ())):  # type: ignore[misc]
        # The blocks use no random numbers, so no random state needs to be restored.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _positions(x: Tensor, place: Tensor) -> Tensor:
    """Positions (B, 3, X, Y, Z) of the voxels of x (B, C, X, Y, Z) in the whole volume, -1 to 1 along each axis.

    Args:
        x: whole volumes, or patches.
        place: see `Condition.place`.
    """
    axes = [torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1, -1)
    if not place.numel():
        return grid
    first, last = place.to(x).view(-1, 3, 2, 1, 1, 1).unbind(2)
    return first + (grid + 1) / 2 * (last - first)
