"""Changes of variables in which the diffusion runs: the image itself or its Haar coefficients.

A codec maps each block of `stride` voxels to one position. `BlockCodec` mixes the voxels of a block by an orthogonal
matrix: it is exactly invertible, and nothing is trained. A trained autoencoder is another codec
(`medaug.networks.autoencoder`). Every codec standardises its channels by the training data. The codecs by name are in
`medaug.networks.codec_table`.
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
    """Images (B, M, X, Y, Z) in [-1, 1] to codes (B, C, X/sx, Y/sy, Z/sz) of about zero mean and unit variance.

    Sides that do not divide by the stride are rounded up: the image is padded with its outermost voxels.

    Attributes:
        stride: voxels per block along each axis.
        channels: C of the codes.
        mean, std: (1, C, 1, 1, 1), measured by `fit`, kept in checkpoints and used at sampling.
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
        """Float32 images to coefficients as they are, not standardised."""
        raise NotImplementedError

    def inverse(self, coefficients: Tensor) -> Tensor:
        """From what `transform` gives to images whose sides are multiples of the stride."""
        raise NotImplementedError

    def pooled(self, moments: Tensor) -> Tensor:
        """Moments (C,) averaged over channels that share their statistics."""
        return moments

    def encode(self, image: Tensor) -> Tensor:
        """Image in model space to standardised coefficients, float32."""
        return (self.transform(image.float()) - self.mean) / self.std

    def decode(self, code: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The inverse of `encode`: for `identity` and `haar` exact, to rounding.

        Args:
            code: (B, C, ...).
            shape: X, Y, Z of the image; None: all that the code holds, with what `encode` added to odd sides.
        """
        image = self.inverse(code.float() * self.std + self.mean)
        return image if shape is None else crop(image, shape)

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Measure mean and standard deviation of every channel over images (M, X, Y, Z), all positions pooled."""
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
    """Blocks of voxels mixed by the Haar matrix: for a stride of 1 the identity, of 2, 4 or 8 one, two or three levels.

    Channels are ordered by modality, then as the rows of `haar_matrix`. The coefficients of one subband that a block
    holds at several positions share their mean and standard deviation.
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
        """The transposed matrix is the inverse one."""
        return depth_to_space(self._mix(coefficients, self.mixing.T), self.stride)

    def pooled(self, moments: Tensor) -> Tensor:
        """Averaged over each subband's positions in the block."""
        bands = subbands(self.stride)
        parts = moments.view(-1, self.block).split(bands, dim=1)
        return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], dim=1).flatten()

    def _mix(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        b, c, *grid = blocks.shape
        mixed = torch.einsum("ij,bmj...->bmi...", matrix, blocks.view(b, c // self.block, self.block, *grid))
        return mixed.reshape(b, c, *grid)


def haar_matrix(stride: Stride) -> Tensor:
    """The orthonormal Haar transform of one block (block, block), over the axes that are longer than 1.

    One level is the Kronecker product of [[1, 1], [1, -1]] / sqrt(2) over the axes (Haar 1910); further levels
    transform its low-pass band again (Mallat 1989, the isotropic pyramid). Columns are voxels, rows are coefficients:
    the coarsest low-pass, then the other subbands from coarse to fine, each at all its positions in the block.
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
    """How many rows of `haar_matrix` belong to each subband, in their order."""
    if math.prod(stride) == 1:
        return [1]
    halved = _halved(stride)
    coarse = _divided(stride, halved)
    return subbands(coarse) + [math.prod(coarse)] * (math.prod(halved) - 1)


def space_to_depth(x: Tensor, stride: Stride) -> Tensor:
    """(B, C, X, Y, Z) -> (B, C * sx*sy*sz, X/sx, Y/sy, Z/sz): every voxel kept, so a one-voxel lesion stays visible.

    Sides that do not divide by the stride are rounded up (`pad_to_multiple`).
    """
    sx, sy, sz = stride
    blocks = "b c (x sx) (y sy) (z sz) -> b (c sx sy sz) x y z"
    return rearrange(pad_to_multiple(x, stride), blocks, sx=sx, sy=sy, sz=sz)


def depth_to_space(x: Tensor, stride: Stride) -> Tensor:
    """The inverse of `space_to_depth`; it keeps the padding."""
    sx, sy, sz = stride
    return rearrange(x, "b (c sx sy sz) x y z -> b c (x sx) (y sy) (z sz)", sx=sx, sy=sy, sz=sz)


def pad_to_multiple(x: Tensor, stride: Stride) -> Tensor:
    """(B, C, X, Y, Z) with each side rounded up to a multiple of the stride: its last voxels are repeated behind it."""
    missing = [-side % s for side, s in zip(x.shape[2:], stride, strict=True)]
    if not any(missing):
        return x
    return pad(x, [n for more in reversed(missing) for n in (0, more)], mode="replicate")


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The first voxels of (B, C, ...) along each axis: what `pad_to_multiple` was given."""
    width, height, depth = shape
    return x[..., :width, :height, :depth]


def _halved(stride: Stride) -> Stride:
    x, y, z = (min(side, 2) for side in stride)
    return x, y, z


def _divided(stride: Stride, by: Stride) -> Stride:
    x, y, z = (side // part for side, part in zip(stride, by, strict=True))
    return x, y, z
