"""How plausible the shape of a segmentation is, judged by human labels alone.

Shapes are compared by signed distance maps (Leventon, Grimson and Faugeras, "Statistical shape influence in geodesic
active contours", CVPR 2000) under a Gaussian whose covariance is that of the human shapes plus the same variance in all
other directions (probabilistic principal components: Tipping and Bishop, JRSS B 61(3), 1999, eq. 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, shift

from medaug.cohort.schema import foreground

REACH = 5.0
"""Distances beyond this many voxels from a border count as this far."""
LEAST_REST = 0.01
"""Least variance in other directions, voxels squared: masks that differ by a tenth of a voxel do not differ."""
STRIDE = 2
"""Every second voxel along each axis is compared: distance maps are smooth."""
FEWEST = 3
"""Minimum number of subjects, so that leaving one out leaves a population."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Gaussian:
    """A population: mean (D,), orthonormal directions (K, D) with their variances (K,), and variance of all others."""

    mean: Vector
    directions: Vector
    variances: Vector

    @classmethod
    def of(cls, vectors: Vector) -> _Gaussian:
        mean = vectors.mean(axis=0)
        _, sizes, directions = np.linalg.svd(vectors - mean, full_matrices=False)
        kept = sizes > 1e-6 * max(float(sizes[0]), 1e-12)
        return cls(mean, directions[kept], sizes[kept] ** 2 / (len(vectors) - 1))

    def rest(self, vector: Vector) -> float:
        """Mean square of what the directions cannot express."""
        away = vector - self.mean
        return max(float(away @ away - np.square(self.directions @ away).sum()), 0.0) / len(away)

    def distance(self, vector: Vector, rest: float) -> float:
        """Mahalanobis distance over the root of D, with a variance of `rest` more than the directions have."""
        away = vector - self.mean
        along = np.square(self.directions @ away)
        squares = (along / (self.variances + rest)).sum() + (float(away @ away) - along.sum()) / rest
        return float(np.sqrt(max(squares, 0.0) / len(away)))


@dataclass(frozen=True)
class Plausibility:
    """Judges shapes by those of human labels, see `Plausibility.of`."""

    classes: tuple[int, ...]
    population: _Gaussian
    rest: float

    @classmethod
    def of(
        cls, labels: Sequence[NDArray[np.uint8]], subjects: Sequence[str], mirror: Sequence[int] = ()
    ) -> Plausibility:
        """Learn what is usual from human labels.

        The variance of what a population of this size cannot express is found by leaving out each subject in turn.

        Args:
            labels: class indices or IGNORE (X, Y, Z), all on one grid.
            subjects: subject of each label.
            mirror: axes along which shapes also occur mirrored, such as those of left and right structures.

        Raises:
            ValueError: fewer than `FEWEST` subjects.
        """
        if len(set(subjects)) < FEWEST:
            raise ValueError(f"{len(set(subjects))} subjects, at least {FEWEST} are needed")
        classes = tuple(
            int(value) for value in np.unique(np.concatenate([np.unique(x[foreground(x)]) for x in labels]))
        )
        shown = [
            (subject, distance_map(seen, classes))
            for label, subject in zip(labels, subjects, strict=True)
            for seen in (label, *(np.flip(label, axis) for axis in mirror))
        ]
        vectors, owners = np.stack([vector for _, vector in shown]), np.array([subject for subject, _ in shown])
        others = {subject: _Gaussian.of(vectors[owners != subject]) for subject in sorted(set(subjects))}
        rest = float(np.mean([others[owner].rest(vector) for owner, vector in shown]))
        return cls(classes, _Gaussian.of(vectors), max(rest, LEAST_REST))

    def distance(self, label: NDArray[np.uint8]) -> float:
        """Mahalanobis distance of a shape over the root of the dimension: about 1 for a new shape of the population."""
        return self.population.distance(distance_map(label, self.classes), self.rest)

    def weight(self, label: NDArray[np.uint8]) -> float:
        """1 for a usual shape; falls with the fourth power of the distance beyond; 0 if there is no foreground."""
        if not foreground(label).any():
            return 0.0
        return min(1.0, self.distance(label) ** -4)


def distance_map(label: NDArray[np.uint8], classes: Sequence[int]) -> Vector:
    """Signed distance to the border of each class in voxels, negative inside, moved to the centre of the grid, (D,).

    A class that is absent is `REACH` away everywhere.
    """
    where = np.argwhere(foreground(label))
    centre = (np.array(label.shape) - 1) / 2
    # Halves are rounded up, and not to even numbers, so that a mask that moves by a voxel is moved back by one.
    offset = np.floor(centre - (where.mean(axis=0) if len(where) else centre) + 0.5).astype(int)
    maps = []
    for value in classes:
        mask = shift(label == value, offset, order=0, cval=0)
        away = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, REACH)
        signed = np.clip(away - distance_transform_edt(mask), -REACH, REACH)
        maps.append(signed[::STRIDE, ::STRIDE, ::STRIDE])
    return np.stack(maps).astype(np.float64).ravel()
