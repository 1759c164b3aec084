"""From a label map to what the network is told.

Foreground classes one-hot, and a "known" flag for each: a class that is absent (known, empty) and one that nobody
looked for (unknown) are different things. All unknown is the null condition of classifier-free guidance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medaug.cohort.schema import IGNORE
from medaug.networks.codecs import space_to_depth


class Condition(NamedTuple):
    """What a network is told, per sample. All zero is the null condition: nothing is known.

    Attributes:
        planes: (B, K, X/sx, Y/sy, Z/sz): mask planes by space-to-depth, known flags, image channels; K may be 0.
        attributes: (B, A): encoded attributes of the scan (one-hot or standardised, and known flags); A may be 0.
    """

    planes: Tensor
    attributes: Tensor


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Planes (B, num_classes, X, Y, Z) bool of class indices (B, X, Y, Z); ignored voxels are in none."""
    return label[:, None] == torch.arange(num_classes, device=label.device).view(1, -1, 1, 1, 1)


def condition_channels(num_classes: int, stride: tuple[int, int, int]) -> int:
    """Channels that `embed_mask` gives, from the number of classes with background."""
    return (num_classes - 1) * (stride[0] * stride[1] * stride[2] + 1)


def embed_mask(label: Tensor, known: Tensor, num_classes: int, stride: tuple[int, int, int]) -> Tensor:
    """Condition in codec space.

    Args:
        label: (B, X, Y, Z) class indices, 0 = background, or IGNORE.
        known: (B, num_classes - 1) in {0, 1}, whether the class was looked for.
        num_classes: with background.
        stride: voxels per block of the codec.

    Returns:
        (B, condition_channels, X/sx, Y/sy, Z/sz) float32: every voxel of every known class by space-to-depth, in
        -1 / +1 (0 where class or voxel are unknown), then the known flags as constant planes.
    """
    flags = known.float()[:, :, None, None, None]
    planes = (2.0 * one_hot(label, num_classes)[:, 1:] - 1.0) * flags * (label != IGNORE)[:, None]
    embedded = space_to_depth(planes, stride)
    return torch.cat([embedded, flags.expand(-1, -1, *embedded.shape[2:])], dim=1)
