"""The networks of the segmenters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.networks.nets import DynUNet, UNet
from torch import Tensor, nn

from medaug.networks.codecs import crop, pad_to_multiple

Build = Callable[[int, int, Sequence[int]], nn.Module]
"""Makes an untrained network from the number of modalities, the number of classes, and the features per level."""


class _UNet(UNet):
    """MONAI's U-Net for volumes of any size: sides that cannot be halved at every level are padded with edge values."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, X, Y, Z) to logits (B, num_classes, X, Y, Z)."""
        halved = math.prod(self.strides)
        return crop(super().forward(pad_to_multiple(x, (halved, halved, halved))), x.shape[2:])


class _DynUNet(DynUNet):
    """MONAI's DynUNet for volumes of any size, see `_UNet`."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, M, X, Y, Z) to logits (B, num_classes, X, Y, Z); in training, a list with the finest level first."""
        halved = 2 ** (len(self.strides) - 1)
        output = super().forward(pad_to_multiple(x, (halved, halved, halved)))
        if not self.training or not self.deep_supervision:
            return crop(output, x.shape[2:])
        return [crop(level, x.shape[2:]) for level in torch.unbind(output, dim=1)]


def build_unet(num_modalities: int, num_classes: int, channels: Sequence[int]) -> nn.Module:
    """Untrained U-Net: (B, M, X, Y, Z) to logits (B, num_classes, X, Y, Z)."""
    return _UNet(
        spatial_dims=3,
        in_channels=num_modalities,
        out_channels=num_classes,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
        norm="instance",
    )


def build_dynunet(num_modalities: int, num_classes: int, channels: Sequence[int]) -> nn.Module:
    """Untrained DynUNet (nnU-Net's architecture) with deep supervision on all levels except the two coarsest.

    It needs at least three levels; with three there is no deep supervision.
    """
    levels = len(channels)
    supervised = max(levels - 3, 0)
    return _DynUNet(
        spatial_dims=3,
        in_channels=num_modalities,
        out_channels=num_classes,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(channels),
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=supervised > 0,
        deep_supr_num=max(supervised, 1),
    )
