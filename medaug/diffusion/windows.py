"""Whole volumes from a denoiser of patches: overlapping windows, fused at every step (MultiDiffusion).

A network that was trained on patches denoises each window of x_t, and the x_0 of a voxel is the weighted mean over the
windows that contain it (Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5). At a given x_t and t, x_0 is affine in what the
network predicts, so this is also the mean of its predictions. The sampler then does one step with the whole volume, so
that there is one consistent volume without seams, and any sampler can be used.

With a denoiser that treats each voxel by itself the fused denoiser is exactly that of the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Windows:
    """Windows of one size that cover a grid.

    The weight of a window is sin^2 along each axis, highest in its middle, and divided by the sum over all windows. The
    weights of all windows thus sum to 1 at each voxel.

    Attributes:
        grid: shape of the grid.
        size: shape of each window, at most that of the grid.
        overlap: the least share of a window that the next one overlaps along each axis, in [0, 1). 0: windows abut,
            without any transition.

    Raises:
        ValueError: a window larger than the grid, or an overlap that would leave gaps.
    """

    grid: Shape
    size: Shape
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(
                f"overlap is {self.overlap:g}, but must be at least 0, as windows would leave gaps, and below 1"
            )
        if any(not 0 < size <= side for size, side in zip(self.size, self.grid, strict=True)):
            raise ValueError(f"windows of {_text(self.size)} do not fit into a grid of {_text(self.grid)}")

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """The first index of the windows along each axis, evenly spread from border to border."""
        return tuple(_starts(*pair, self.overlap) for pair in zip(self.grid, self.size, strict=True))

    def __len__(self) -> int:
        """The number of windows."""
        return math.prod(map(len, self.starts))

    def boxes(self) -> Iterator[Box]:
        """The windows, as slices of the grid."""
        for corner in product(*self.starts):
            x, y, z = (slice(start, start + size) for start, size in zip(corner, self.size, strict=True))
            yield x, y, z

    def fuse(self, function: Callable[[Box], Tensor], scale: Shape = (1, 1, 1)) -> Tensor:
        """The weighted mean of a function's values on all windows: (B, C, *(grid * scale)), on the CPU.

        Besides the result, only one value is in memory at a time.

        Args:
            function: gets a window as slices of the grid, and returns (B, C, *(size * scale)) on any device.
            scale: number of voxels of the result per position of the grid, along each axis.
        """
        weights = [_weights(*axis) for axis in zip(self.starts, self.grid, self.size, scale, strict=True)]
        fused: Tensor | None = None
        for box, (x, y, z) in zip(self.boxes(), product(*weights), strict=True):
            value = function(box).cpu()
            if fused is None:
                sides = [side * s for side, s in zip(self.grid, scale, strict=True)]
                fused = value.new_zeros(*value.shape[:2], *sides)
            weight = x[:, None, None] * y[:, None] * z
            fused[(..., *scaled(box, scale))] += value * weight.to(value.dtype)
        assert fused is not None  # a grid has at least one window
        return fused


def scaled(box: Box, scale: Sequence[int]) -> Box:
    """The same box of a grid whose positions are `scale` voxels wide along each axis."""
    x, y, z = (slice(part.start * s, part.stop * s) for part, s in zip(box, scale, strict=True))
    return x, y, z


def divided(shape: Sequence[int], by: Sequence[int]) -> Shape:
    """A shape in positions that are `by` voxels wide along each axis."""
    x, y, z = (side // s for side, s in zip(shape, by, strict=True))
    return x, y, z


def place(box: Box, grid: Sequence[int]) -> Tensor:
    """Where a box lies in a grid: first and last position along x, y and z, from -1 to 1 over the grid, (6,) float32.

    A network that gets it knows the position of each voxel in the whole volume, as in patch diffusion (Wang et al.
    2023, arXiv 2304.12526, section 3.1).
    """
    ends = [
        2 * index / max(side - 1, 1) - 1
        for part, side in zip(box, grid, strict=True)
        for index in (part.start, part.stop - 1)
    ]
    return torch.tensor(ends, dtype=torch.float32)


def _starts(side: int, size: int, overlap: float) -> tuple[int, ...]:
    step = max(1, math.floor(size * (1 - overlap)))
    gaps = -(-(side - size) // step)
    return tuple(round(number * (side - size) / gaps) for number in range(gaps + 1)) if gaps else (0,)


def _weights(starts: Sequence[int], side: int, size: int, scale: int) -> Tensor:
    """The weights (number of windows, size * scale), float64, along one axis; at each position they sum to 1."""
    length = size * scale
    bell = torch.sin(math.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length).square()
    total = torch.zeros(side * scale, dtype=torch.float64)
    for start in starts:
        total[start * scale : start * scale + length] += bell
    return torch.stack([bell / total[start * scale : start * scale + length] for start in starts])


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
