"""The condition of a network: masks, images and attributes, each with a flag that says whether it is known.

The flags distinguish a class that is absent (known and empty) from one that was not labelled (unknown), and a dark
image from a missing one. If all classes are unknown, that is the null condition of classifier-free guidance on the
mask.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from medaug.cohort.schema import IGNORE
from medaug.networks.codecs import space_to_depth


class Condition(NamedTuple):
    """The condition of a batch.

    Attributes:
        planes: (B, K, X/sx, Y/sy, Z/sz) float32 in codec space: masks and images as `embed` returns them, then the
            field of view (`embed_field_of_view`) if the model gets it; K may be 0.
        attributes: (B, A) float32, the encoded attributes of each scan; A may be 0.
        place: (B, 6) float32, where each sample lies in the whole volume, see `medaug.diffusion.windows.place`; with no
            elements, samples are whole volumes.
    """

    planes: Tensor
    attributes: Tensor
    place: Tensor = torch.empty(0)


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """One-hot planes (B, num_classes, X, Y, Z) bool of class indices (B, X, Y, Z); all false at ignored voxels."""
    return label[:, None] == torch.arange(num_classes, device=label.device).view(1, -1, 1, 1, 1)


def signed_planes(label: Tensor, num_classes: int) -> Tensor:
    """Planes (B, num_classes - 1, X, Y, Z) float32 of the foreground classes: 1 inside, -1 outside, 0 where ignored.

    Args:
        label: (B, X, Y, Z) class indices, 0 = background, or IGNORE.
        num_classes: number of classes, with background.
    """
    return (2.0 * one_hot(label, num_classes)[:, 1:] - 1.0) * (label != IGNORE)[:, None]


def embedded_channels(num_volumes: int, stride: tuple[int, int, int]) -> int:
    """The number of channels that `embed` returns for this many volumes."""
    return num_volumes * (math.prod(stride) + 1)


def embed(volumes: Tensor, known: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Bring volumes to codec space as planes, with a flag per volume that says whether it is known.

    Args:
        volumes: (B, N, X, Y, Z): `signed_planes`, or images in [-1, 1].
        known: (B, N) in {0, 1}.
        stride: voxels per block of the codec.

    Returns:
        (B, embedded_channels, X/sx, Y/sy, Z/sz) float32: the voxels of all volumes by space-to-depth, 0 for unknown
        volumes, then the flags as constant planes.
    """
    flags = known.float()[:, :, None, None, None]
    embedded = space_to_depth(volumes * flags, stride)
    return torch.cat([embedded, flags.expand(-1, -1, *embedded.shape[2:])], dim=1)


def embed_field_of_view(inside: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Bring the field of view (B, X, Y, Z) bool to codec space: (B, sx * sy * sz, X/sx, Y/sy, Z/sz) float32.

    1 at voxels of the scan, -1 at padding. It has no flag, because it is always known.
    """
    return space_to_depth(2.0 * inside[:, None].float() - 1.0, stride)
