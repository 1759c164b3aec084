"""Replacements for MONAI layers that compute the same functions of the same weights faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.diffusion_model_unet import WrappedUpsample
from torch import Tensor, nn


class UpsampledConv(nn.Module):
    """Nearest-neighbour x2 upsampling and a 3-wide convolution, fused into one transposed convolution.

    In 3D it needs 8/27 of the operations. Two of the three voxels that the convolution sees along an axis are copies of
    one voxel of x. So an even output is w_0 x_{i-1} + (w_1 + w_2) x_i and an odd one (w_0 + w_1) x_i + w_2 x_{i+1}: a
    transposed convolution of stride 2 with the kernel (w_2, w_1 + w_2, w_0 + w_1, w_0) along each axis (the equivalence
    of Shi et al. 2016, arXiv:1609.07009, in the opposite direction). The names and shapes of the weights are those of
    the convolution.

    Args:
        conv: convolution with kernel 3, stride 1 and padding 1 whose weight (out, in, 3, ...) and bias are used.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, X, Y[, Z]) to (B, out, 2X, 2Y[, 2Z])."""
        volumetric = x.ndim == 5
        if 1 in x.shape[2:]:
            # On CPUs, torch 2.13 reads uninitialised memory in the bfloat16 gradient of such a transposed kernel.
            convolution = F.conv3d if volumetric else F.conv2d
            return convolution(F.interpolate(x, scale_factor=2.0), self.weight, self.bias, padding=1)
        kernel = self.weight.transpose(0, 1)
        for axis in range(2, kernel.ndim):
            w_0, w_1, w_2 = kernel.unbind(axis)
            kernel = torch.stack([w_2, w_1 + w_2, w_0 + w_1, w_0], axis)
        transposed = F.conv_transpose3d if volumetric else F.conv_transpose2d
        return transposed(x, kernel, self.bias, stride=2, padding=1)


class SelfAttention(nn.Module):
    """Multi-head attention softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1), on CPUs always in float32.

    On CPUs, torch 2.13 takes several times as long for the gradient of attention in bfloat16. On other devices autocast
    decides, so that CUDA uses its flash kernel.

    Args:
        block: MONAI's block, with separate projections for q, k and v, which are reused.
    """

    def __init__(self, block: SABlock) -> None:
        super().__init__()
        # In MONAI's order: an optimiser's saved state identifies parameters by their order.
        self.out_proj, self.to_q, self.to_k, self.to_v = block.out_proj, block.to_q, block.to_k, block.to_v
        self.num_heads = block.num_heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, positions, C) to the same shape."""
        projections = (self.to_q, self.to_k, self.to_v)
        q, k, v = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in projections)
        dtype = q.dtype
        if x.device.type == "cpu":
            q, k, v = (part.to(torch.promote_types(dtype, torch.float32)) for part in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            heads = F.scaled_dot_product_attention(q, k, v).to(dtype)
        merged: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return merged


def replace_layers(net: nn.Module) -> None:
    """Replace the layers of a MONAI diffusion U-Net or ControlNet; weights keep their names, shapes and order."""
    for module in net.modules():
        if isinstance(module, WrappedUpsample):
            module.upsample_non_trainable = nn.Identity()
            module.postconv.conv = UpsampledConv(module.postconv.conv)  # type: ignore[arg-type, union-attr]
        elif isinstance(module, SpatialAttentionBlock):
            module.attn = SelfAttention(module.attn)  # type: ignore[assignment]
