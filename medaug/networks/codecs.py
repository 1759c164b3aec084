"""Codecs: the changes of variables that the diffusion runs in, such as the Haar coefficients of an image.

A codec maps each block of `stride` voxels to one position. `BlockCodec` multiplies the voxels of a block by an
orthogonal matrix; it is exactly invertible and needs no training. `medaug.networks.autoencoder` has a trained codec.
Every codec standardises its channels with the statistics of the training data. `medaug.networks.codec_table` is the
table of codecs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

Stride = tuple[int, int, int]


class Codec(nn.Module):
    """Encodes images (B, M, X, Y, Z) in [-1, 1] as codes (B, C, X/sx, Y/sy, Z/sz) of about zero mean and unit variance.

    Sides that are not divisible by the stride are rounded up: the image is padded by repeating its last voxels.

    Attributes:
        stride: voxels per block along each axis.
        channels: number C of channels of a code.
        mean, std: (1, C, 1, 1, 1), measured by `fit` and stored in checkpoints.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stride: Stride, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1, 1))

    def transform(self, image: Tensor) -> Tensor:
        """Coefficients of float32 images, not yet standardised."""
        raise NotImplementedError

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The inverse of `transform`: images whose sides are multiples of the stride."""
        raise NotImplementedError

    def pooled(self, moments: Tensor) -> Tensor:
        """Moments (C,) averaged over channels that share their statistics."""
        return moments

    def encode(self, image: Tensor) -> Tensor:
        """Standardised coefficients, float32, of an image in model space."""
        return (self.transform(image.float()) - self.mean) / self.std

    def decode(self, code: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The inverse of `encode`; exact up to rounding for `identity` and `haar`.

        Args:
            code: (B, C, ...).
            shape: X, Y, Z of the image, to which the result is cropped; None: keep the padding that `encode` added.
        """
        image = self.inverse(code.float() * self.std + self.mean)
        return image if shape is None else crop(image, shape)

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Measure the mean and standard deviation of every channel, over all positions of images (M, X, Y, Z)."""
        total = torch.zeros(self.channels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        count = 0
        for image in images:
            code = self.transform(image[None].float().to(self.mean.device)).flatten(2)[0].cpu().double()
            total += code.sum(1)
            squares += code.square().sum(1)
            count += code.shape[1]
        mean = self.pooled(total) / count
        std = (self.pooled(squares) / count - mean.square()).clamp_min(1e-8).sqrt()
        self.mean.copy_(mean.view(1, -1, 1, 1, 1))
        self.std.copy_(std.view(1, -1, 1, 1, 1))


class BlockCodec(Codec):
    """Multiplies blocks of voxels by the Haar matrix.

    Strides of 2, 4 and 8 have one, two and three levels; with a stride of 1 the codec is the identity.
    Channels are ordered by modality, then as the rows of `haar_matrix`. If a block has coefficients of one subband at
    several positions, these share their mean and standard deviation.
    """

    mixing: Tensor

    def __init__(self, stride: Stride, image_channels: int) -> None:
        self.block = math.prod(stride)
        super().__init__(stride, image_channels * self.block)
        self.register_buffer("mixing", haar_matrix(stride))

    def transform(self, image: Tensor) -> Tensor:
        """(B, M, X, Y, Z) to (B, M * block, X/sx, Y/sy, Z/sz)."""
        return self._mix(space_to_depth(image, self.stride), self.mixing)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Multiply by the transposed matrix, which is the inverse."""
        return depth_to_space(self._mix(coefficients, self.mixing.T), self.stride)

    def pooled(self, moments: Tensor) -> Tensor:
        """Moments (C,) averaged over each subband's positions in the block."""
        bands = subbands(self.stride)
        parts = moments.view(-1, self.block).split(bands, dim=1)
        return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], dim=1).flatten()

    def _mix(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        b, c, *grid = blocks.shape
        mixed = torch.einsum("ij,bmj...->bmi...", matrix, blocks.view(b, c // self.block, self.block, *grid))
        return mixed.reshape(b, c, *grid)


def haar_matrix(stride: Stride) -> Tensor:
    """The matrix (block, block) of the orthonormal Haar transform of one block, over the axes that are longer than 1.

    One level is the Kronecker product of [[1, 1], [1, -1]] / sqrt(2) over the axes (Haar 1910); each further level
    transforms the low-pass band of the one before (Mallat 1989, the isotropic pyramid). Columns are voxels and rows are
    coefficients: first the coarsest low-pass, then the other subbands from coarse to fine, each at all its positions in
    the block.
    """
    if math.prod(stride) == 1:
        return torch.ones(1, 1)
    halved = _halved(stride)
    haar = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    level = torch.ones(1, 1)
    for side in halved:
        level = torch.kron(level, haar if side == 2 else torch.ones(1, 1))
    unit_blocks = torch.eye(math.prod(stride)).view(-1, 1, *stride)
    bands = torch.einsum("ij,nj...->ni...", level, space_to_depth(unit_blocks, halved)).flatten(2)
    coarse = bands[:, 0] @ haar_matrix(_divided(stride, halved)).T
    return torch.cat([coarse, bands[:, 1:].flatten(1)], dim=1).T.contiguous()


def subbands(stride: Stride) -> list[int]:
    """The number of rows of `haar_matrix` that belong to each subband, in order."""
    if math.prod(stride) == 1:
        return [1]
    halved = _halved(stride)
    coarse = _divided(stride, halved)
    return subbands(coarse) + [math.prod(coarse)] * (math.prod(halved) - 1)


def space_to_depth(x: Tensor, stride: Stride) -> Tensor:
    """Turn each block of voxels into channels: (B, C, X, Y, Z) -> (B, C * sx*sy*sz, X/sx, Y/sy, Z/sz).

    Every voxel is kept, so that a lesion of one voxel stays visible. Sides that are not divisible by the stride are
    padded (`pad_to_multiple`).
    """
    sx, sy, sz = stride
    blocks = "b c (x sx) (y sy) (z sz) -> b (c sx sy sz) x y z"
    return rearrange(pad_to_multiple(x, stride), blocks, sx=sx, sy=sy, sz=sz)


def depth_to_space(x: Tensor, stride: Stride) -> Tensor:
    """The inverse of `space_to_depth`; it keeps the padding."""
    sx, sy, sz = stride
    return rearrange(x, "b (c sx sy sz) x y z -> b c (x sx) (y sy) (z sz)", sx=sx, sy=sy, sz=sz)


def pad_to_multiple(x: Tensor, stride: Stride) -> Tensor:
    """Pad each side of (B, C, X, Y, Z) to a multiple of the stride by repeating its last voxels."""
    missing = [-side % s for side, s in zip(x.shape[2:], stride, strict=True)]
    if not any(missing):
        return x
    return pad(x, [n for more in reversed(missing) for n in (0, more)], mode="replicate")


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Crop (B, C, X, Y, Z) to its first voxels along each axis; undoes `pad_to_multiple`."""
    width, height, depth = shape
    return x[..., :width, :height, :depth]


def _halved(stride: Stride) -> Stride:
    x, y, z = (min(side, 2) for side in stride)
    return x, y, z


def _divided(stride: Stride, by: Stride) -> Stride:
    x, y, z = (side // part for side, part in zip(stride, by, strict=True))
    return x, y, z
