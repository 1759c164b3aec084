"""Nearest-neighbour upsampling and the convolution after it, as one transposed convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import WrappedUpsample
from torch import Tensor, nn


class UpsampledConv(nn.Module):
    """What a convolution of width 3 says to x upsampled twofold by nearest neighbour, for 8/27 of its operations in 3D.

    Of the three voxels that the convolution sees along an axis, two are copies of one voxel of x. So an even output is
    w_0 x_{i-1} + (w_1 + w_2) x_i and an odd one (w_0 + w_1) x_i + w_2 x_{i+1}: a transposed convolution of stride 2
    with the kernel (w_2, w_1 + w_2, w_0 + w_1, w_0) along each axis (the equivalence of Shi et al. 2016,
    arXiv:1609.07009, read backwards). The weights, their names and shapes stay those of the convolution.

    Args:
        conv: of kernel 3, stride 1, padding 1, whose weight (out, in, 3, ...) and bias are taken over.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, X, Y[, Z]) to (B, out, 2X, 2Y[, 2Z])."""
        volumetric = x.ndim == 5
        if 1 in x.shape[2:]:
            # On processors torch 2.13 computes such a kernel's gradient in bfloat16 from memory that nobody wrote.
            convolution = F.conv3d if volumetric else F.conv2d
            return convolution(F.interpolate(x, scale_factor=2.0), self.weight, self.bias, padding=1)
        kernel = self.weight.transpose(0, 1)
        for axis in range(2, kernel.ndim):
            w_0, w_1, w_2 = kernel.unbind(axis)
            kernel = torch.stack([w_2, w_1 + w_2, w_0 + w_1, w_0], axis)
        transposed = F.conv_transpose3d if volumetric else F.conv_transpose2d
        return transposed(x, kernel, self.bias, stride=2, padding=1)


def fuse_upsampling(net: nn.Module) -> None:
    """Let every upsampling of a MONAI diffusion U-Net be an `UpsampledConv`; weights keep their names."""
    for module in net.modules():
        if isinstance(module, WrappedUpsample):
            module.upsample_non_trainable = nn.Identity()
            module.postconv.conv = UpsampledConv(module.postconv.conv)  # type: ignore[arg-type, union-attr]
