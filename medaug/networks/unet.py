"""MONAI's diffusion U-Net, conditioned by concatenation, behind net(x, t, condition)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from medaug.networks.condition import Condition


class ConcatUNet(nn.Module):
    """U-Net with time embedding, skip connections and self-attention at chosen levels.

    In 2D every slice along the third axis is a sample of its own: the depth is folded into the batch, so data, codecs
    and samplers stay three-dimensional.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of x.
        condition_channels: channels of the condition.
        channels: features per level; each divides by `norm_num_groups`, those with attention by `num_head_channels`.
        attention: self-attention per level.
        num_res_blocks: residual blocks per level.
        num_head_channels: features per head.
        norm_num_groups: groups of the group normalisation.
        coordinates: the position of each voxel, -1 to 1 along each axis, as three more input channels (Liu et al.
            2018, CoordConv): convolutions do not know where they are, and in an aligned cohort anatomy does.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        condition_channels: int,
        channels: Sequence[int],
        attention: Sequence[bool],
        num_res_blocks: int,
        num_head_channels: int,
        norm_num_groups: int,
        coordinates: bool = False,
    ) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.spatial_dims = spatial_dims
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels + condition_channels + 3 * coordinates,
            out_channels=in_channels,
            channels=tuple(channels),
            attention_levels=tuple(attention),
            num_res_blocks=num_res_blocks,
            num_head_channels=num_head_channels,
            norm_num_groups=norm_num_groups,
            use_flash_attention=True,
        )

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predict from x (B, C, X, Y, Z), times t (B,) in [0, 1] and the condition: (B, C, X, Y, Z)."""
        # The sinusoidal embedding was made for step numbers up to a thousand.
        steps = 1000 * t
        inputs = torch.cat([x, condition.planes, *([_positions(x)] if self.coordinates else [])], dim=1)
        if self.spatial_dims == 3:
            return self.unet(inputs, steps)
        b, _, width, height, depth = inputs.shape
        slices = inputs.permute(0, 4, 1, 2, 3).flatten(0, 1)
        out = self.unet(slices, steps.repeat_interleave(depth))
        return out.view(b, depth, -1, width, height).permute(0, 2, 3, 4, 1)


def _positions(x: Tensor) -> Tensor:
    """(B, 3, X, Y, Z): where each voxel of x (B, C, X, Y, Z) lies, -1 to 1 along each axis."""
    axes = [torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1, -1)
