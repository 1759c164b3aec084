"""What a network is told beside x and t: masks, images and attributes, each with whether it is known.

A class that is absent (known, empty) and one that nobody looked for (unknown) are different things, and so are a dark
image and a missing one. All classes unknown is the null condition of classifier-free guidance on the mask.
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
        planes: (B, K, X/sx, Y/sy, Z/sz) in codec space, float32: masks and images as `embed` gives them; K may be 0.
        attributes: (B, A) float32, what is known of each scan beside its voxels; A may be 0.
    """

    planes: Tensor
    attributes: Tensor


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Planes (B, num_classes, X, Y, Z) bool of class indices (B, X, Y, Z); ignored voxels are in none."""
    return label[:, None] == torch.arange(num_classes, device=label.device).view(1, -1, 1, 1, 1)


def signed_planes(label: Tensor, num_classes: int) -> Tensor:
    """Planes (B, num_classes - 1, X, Y, Z) float32 of the foreground classes: 1 in the class, -1 elsewhere, 0 ignored.

    Args:
        label: (B, X, Y, Z) class indices, 0 = background, or IGNORE.
        num_classes: with background.
    """
    return (2.0 * one_hot(label, num_classes)[:, 1:] - 1.0) * (label != IGNORE)[:, None]


def embedded_channels(num_volumes: int, stride: tuple[int, int, int]) -> int:
    """Channels that `embed` makes of so many volumes."""
    return num_volumes * (math.prod(stride) + 1)


def embed(volumes: Tensor, known: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Volumes to planes in codec space, each volume with a flag that says whether it is known.

    Args:
        volumes: (B, N, X, Y, Z): `signed_planes`, or images in [-1, 1].
        known: (B, N) in {0, 1}.
        stride: voxels per block of the codec.

    Returns:
        (B, embedded_channels, X/sx, Y/sy, Z/sz) float32: every voxel of every known volume by space-to-depth (0 where
        it is unknown), then the flags as constant planes.
    """
    flags = known.float()[:, :, None, None, None]
    embedded = space_to_depth(volumes * flags, stride)
    return torch.cat([embedded, flags.expand(-1, -1, *embedded.shape[2:])], dim=1)
