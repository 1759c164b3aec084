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
"""Distances from a border are cut off at this many voxels."""
LEAST_REST = 0.01
"""Minimum variance in other directions, in voxels squared: a difference of a tenth of a voxel does not count."""
STRIDE = 2
"""Only every second voxel along each axis is compared, because distance maps are smooth."""
FEWEST = 3
"""Minimum number of subjects, so that a population is left when one of them is left out."""

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
        """Mean square of the part of a vector that the directions cannot express."""
        away = vector - self.mean
        return max(float(away @ away - np.square(self.directions @ away).sum()), 0.0) / len(away)

    def distance(self, vector: Vector, rest: float) -> float:
        """Mahalanobis distance divided by the root of D, where `rest` is added to the variance of all directions."""
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
        """Learn from human labels which shapes are usual.

        Each subject is left out in turn to find the variance that a population of this size cannot express.

        Args:
            labels: class indices or IGNORE (X, Y, Z), all on one grid.
            subjects: subject of each label.
            mirror: axes along which shapes also occur mirrored, such as those of left and right structures.

        Raises:
            ValueError: there are fewer than `FEWEST` subjects.
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
        """Mahalanobis distance of a shape over the root of its dimension; about 1 for new shapes of the population."""
        return self.population.distance(distance_map(label, self.classes), self.rest)

    def weight(self, label: NDArray[np.uint8]) -> float:
        """1 for a usual shape; beyond, it falls with the fourth power of the distance; 0 if there is no foreground."""
        if not foreground(label).any():
            return 0.0
        return min(1.0, self.distance(label) ** -4)


def distance_map(label: NDArray[np.uint8], classes: Sequence[int]) -> Vector:
    """Signed distances (D,) to the border of each class in voxels, negative inside, after centring the mask.

    The distance to an absent class is `REACH` everywhere.
    """
    where = np.argwhere(foreground(label))
    centre = (np.array(label.shape) - 1) / 2
    # Round halves up, not to even numbers, so that a mask that was shifted by one voxel is shifted back by one.
    offset = np.floor(centre - (where.mean(axis=0) if len(where) else centre) + 0.5).astype(int)
    maps = []
    for value in classes:
        mask = shift(label == value, offset, order=0, cval=0)
        away = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, REACH)
        signed = np.clip(away - distance_transform_edt(mask), -REACH, REACH)
        maps.append(signed[::STRIDE, ::STRIDE, ::STRIDE])
    return np.stack(maps).astype(np.float64).ravel()
