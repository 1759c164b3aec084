"""Invertible changes of variables in which the diffusion runs.

A codec cuts the volume into blocks and mixes each block's voxels by an orthogonal matrix: for `haar` blocks of two
voxels per axis and the Haar matrix (a one-level wavelet transform: eight times fewer positions in 3D, eight times the
channels), for `identity` blocks of one voxel. Nothing is trained; each channel is standardised by the training data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

CODECS = ("identity", "haar")


def codec_stride(name: str, spatial_dims: int) -> tuple[int, int, int]:
    """Voxels per block along each axis; a 2D network leaves the third axis as it is.

    Raises:
        ValueError: an unknown codec.
    """
    if name not in CODECS:
        raise ValueError(f"codec {name!r} is not one of {', '.join(CODECS)}")
    side = 2 if name == "haar" else 1
    return side, side, side if spatial_dims == 3 else 1


class Codec(nn.Module):
    """encode: (B, M, X, Y, Z) in [-1, 1] -> (B, M * blocks, X/sx, Y/sy, Z/sz), about zero mean and unit variance."""

    mixing: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.stride = codec_stride(name, spatial_dims)
        self.block = math.prod(self.stride)
        self.channels = image_channels * self.block
        self.register_buffer("mixing", _haar_matrix(self.stride))
        self.register_buffer("mean", torch.zeros(1, self.channels, 1, 1, 1))
        self.register_buffer("std", torch.ones(1, self.channels, 1, 1, 1))

    def encode(self, image: Tensor) -> Tensor:
        """Image in model space to standardised coefficients, float32."""
        return (self._mix(space_to_depth(image.float(), self.stride), self.mixing) - self.mean) / self.std

    def decode(self, code: Tensor) -> Tensor:
        """The exact inverse of `encode`, to rounding."""
        return depth_to_space(self._mix(code.float() * self.std + self.mean, self.mixing.T), self.stride)

    def fit(self, images: Iterable[Tensor]) -> None:
        """Measure mean and standard deviation of every channel over images (M, X, Y, Z), all positions pooled."""
        total = torch.zeros(self.channels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        count = 0
        for image in images:
            blocks = space_to_depth(image[None].float(), self.stride)
            code = self._mix(blocks, self.mixing).flatten(2)[0].double()
            total += code.sum(1)
            squares += code.square().sum(1)
            count += code.shape[1]
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
        self.mean.copy_(mean.view(1, -1, 1, 1, 1))
        self.std.copy_(std.view(1, -1, 1, 1, 1))

    def _mix(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        b, c, *grid = blocks.shape
        mixed = torch.einsum("ij,bmj...->bmi...", matrix, blocks.view(b, c // self.block, self.block, *grid))
        return mixed.reshape(b, c, *grid)


def space_to_depth(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(B, C, X, Y, Z) -> (B, C * sx*sy*sz, X/sx, Y/sy, Z/sz): every voxel kept, so a one-voxel lesion stays visible."""
    b, c, *sides = x.shape
    split = [part for side, s in zip(sides, stride, strict=True) for part in (side // s, s)]
    blocks = x.reshape(b, c, *split).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(b, c * math.prod(stride), *(side // s for side, s in zip(sides, stride, strict=True)))


def depth_to_space(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The inverse of `space_to_depth`."""
    b, c, *sides = x.shape
    blocks = x.reshape(b, c // math.prod(stride), *stride, *sides).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(b, -1, *(side * s for side, s in zip(sides, stride, strict=True)))


def _haar_matrix(stride: tuple[int, int, int]) -> Tensor:
    """Kronecker product of [[1, 1], [1, -1]] / sqrt(2) over the halved axes: the orthonormal Haar transform."""
    haar = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    matrix = torch.ones(1, 1)
    for side in stride:
        matrix = torch.kron(matrix, haar if side == 2 else torch.ones(1, 1))
    return matrix
