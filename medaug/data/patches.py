"""Patches of scans for training: where each is cut, so that rare classes are seen often enough.

A patch begins at a block of the codec, so that patches in training and windows in sampling lie at the same positions.
Arrays of the cache are memory-mapped, and only the voxels of a patch are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medaug.data.cases import ModelCase
from medaug.data.grid import Shape
from medaug.diffusion.noise import named_seed
from medaug.diffusion.windows import Box, scaled

REMEMBERED = 1000
"""Maximum number of voxels, per class and scan, that are remembered to place patches; they are chosen at random."""
_MARGIN = 12  # a patch is augmented with a margin of a 12th of its side, so that less is mirrored at its borders


@dataclass(frozen=True)
class ClassVoxels:
    """Where the foreground classes of a scan are.

    Attributes:
        voxels: (N, 3) indices of random voxels, for each class that occurs.
        extent: sides of the box around all voxels, for each class that occurs.
    """

    voxels: Mapping[int, NDArray[np.intp]] = field(default_factory=dict)
    extent: Mapping[int, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Patches:
    """Cuts patches of one shape out of scans.

    Attributes:
        shape: voxels of a patch.
        stride: voxels of a codec's block; patches begin at multiples of it.
        foreground: share of the patches that are placed around a voxel of a foreground class, where the scan has any;
            every class that it has is chosen equally often. The others are placed at random.
        classes: where the classes of each scan are, by case name; scans without a label are absent.
    """

    shape: Shape
    stride: Shape
    foreground: float = 0.0
    classes: Mapping[str, ClassVoxels] = field(default_factory=dict)

    def box(self, case: ModelCase, seed: int) -> Box:
        """The box of voxels of a scan's patch: a function of the scan and the seed.

        A voxel that a patch is placed around is equally likely to be anywhere in the patch, apart from the borders of
        the scan.
        """
        rng = np.random.default_rng(named_seed(seed, "patch"))
        around, known = rng.random() < self.foreground, self.classes.get(case.case.name, ClassVoxels())
        centre: NDArray[np.intp] | None = None
        if around and known.voxels:
            voxels = known.voxels[sorted(known.voxels)[rng.integers(len(known.voxels))]]
            centre = voxels[rng.integers(len(voxels))]
        starts = []
        for axis, (side, size, block) in enumerate(zip(case.image.shape[1:], self.shape, self.stride, strict=True)):
            length, last = size // block, (side - size) // block
            if centre is None:
                starts.append(int(rng.integers(last + 1)))
            else:
                starts.append(int(np.clip(centre[axis] // block - rng.integers(length), 0, last)))
        x, y, z = (
            slice(start, start + size // block)
            for start, size, block in zip(starts, self.shape, self.stride, strict=True)
        )
        return scaled((x, y, z), self.stride)

    def tiles(self, case: ModelCase) -> Iterator[Box]:
        """Boxes that do not overlap and together cover the scan; those at the far borders may be smaller."""
        cuts = [
            [slice(start, min(start + size, side)) for start in range(0, side, size)]
            for side, size in zip(case.image.shape[1:], self.shape, strict=True)
        ]
        yield from product(*cuts)

    def around(self, box: Box, scan: Sequence[int]) -> tuple[Box, Box]:
        """A box with a margin, as far as the scan goes, and where the box lies in that."""
        outer, inner = [], []
        for part, size, side in zip(box, self.shape, scan, strict=True):
            start, stop = max(0, part.start - size // _MARGIN), min(side, part.stop + size // _MARGIN)
            outer.append(slice(start, stop))
            inner.append(slice(part.start - start, part.stop - start))
        return (outer[0], outer[1], outer[2]), (inner[0], inner[1], inner[2])


def find_classes(label: NDArray[np.uint8], num_classes: int, seed: int) -> ClassVoxels:
    """Find random voxels of every foreground class, and how far it extends, reading one slab of the label at a time.

    Args:
        label: (X, Y, Z) class indices, which may be memory-mapped.
        num_classes: number of classes, with background.
        seed: seed of the choice of at most `REMEMBERED` voxels per class.
    """
    rng = np.random.default_rng(seed)
    found: dict[int, list[tuple[NDArray[np.float64], NDArray[np.intp]]]] = {}
    ends: dict[int, NDArray[np.intp]] = {}
    for x in range(label.shape[0]):
        slab = np.array(label[x])
        for value in np.unique(slab[(slab > 0) & (slab < num_classes)]).tolist():
            yz = np.argwhere(slab == value)
            voxels = np.concatenate([np.full((len(yz), 1), x), yz], axis=1)
            here = np.stack([voxels.min(0), voxels.max(0)])
            then = ends.get(value, here)
            ends[value] = np.stack([np.minimum(then[0], here[0]), np.maximum(then[1], here[1])])
            # Every voxel gets a random number, and those with the smallest are kept: each is equally likely.
            numbers = rng.random(len(voxels))
            kept = np.argsort(numbers)[:REMEMBERED]
            found.setdefault(value, []).append((numbers[kept], voxels[kept]))
    voxels_of, extent = {}, {}
    for value, parts in found.items():
        numbers, voxels = (np.concatenate(some) for some in zip(*parts, strict=True))
        voxels_of[value] = voxels[np.argsort(numbers)[:REMEMBERED]]
        first, last = ends[value]
        extent[value] = (int(last[0] - first[0]) + 1, int(last[1] - first[1]) + 1, int(last[2] - first[2]) + 1)
    return ClassVoxels(voxels_of, extent)
