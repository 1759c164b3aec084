"""A model of the shapes of training masks: principal components of their signed distance maps.

After Leventon, Grimson and Faugeras, "Statistical shape influence in geodesic active contours", CVPR 2000, and, for
several classes at once, Tsai et al., "A shape-based approach to the segmentation of medical imagery using level sets",
IEEE TMI 22(2), 2003. Drawing within a few standard deviations of each component is the rule of Cootes et al., "Active
shape models", CVIU 61(1), 1995.

A mask is described by its volume, its pose (centre and rotation) and its shape. The shape is sampled on a lattice in
units of the radius of a ball of the same volume, centred and rotated to the mean shape: the signed distance (negative
inside) to the surface of the foreground, and to that of each class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates

from medaug.cohort.schema import foreground
from medaug.progress import track

Array = NDArray[np.float64]

FORMAT = 1
"""Increase this whenever the code makes a different model from the same masks."""
FEWEST = 10
"""Minimum number of masks with foreground to learn shapes from."""
_MOST_POINTS = 48  # maximum number of lattice points along an axis
_MARGIN = 0.6  # in radii: how far the lattice extends beyond the largest shape, and where distances are cut off
_EXPLAINED = 0.95  # share of the variance that the kept components explain


@dataclass(frozen=True)
class ShapeModel:
    """Shapes of training masks.

    Attributes:
        classes: (C,) class indices that occur.
        axes: (3, max side) coordinates of the lattice along each axis, in radii; NaN beyond the sides of `lattice`.
        lattice: (3,) number of points along each axis.
        mean: (channels * points,) mean signed distances in radii: to the foreground, then, if C > 1, to each class.
        components: (K, channels * points) principal components, each times its standard deviation.
        slope: (K,) mean of each component's coefficient per unit of log volume.
        rest: (K,) standard deviation of each coefficient around that mean.
        volumes: (n,) foreground voxels of the training masks, ascending.
        hosts: (n,) digests of the training masks, ascending.
        rotations: (n, 3, 3) rotation from the mean shape to each training mask, in the order of `hosts`.
    """

    classes: NDArray[np.uint8]
    axes: Array
    lattice: NDArray[np.int64]
    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    slope: Array
    rest: Array
    volumes: Array
    hosts: NDArray[np.str_]
    rotations: Array

    @classmethod
    def fit(cls, labels: Sequence[NDArray[np.uint8]]) -> ShapeModel:
        """Learn the shapes of masks (X, Y, Z) that all have foreground and are all on one grid."""
        masks = [_Mask.of(label) for label in labels]
        classes = np.unique(np.concatenate([np.unique(label[foreground(label)]) for label in labels]))
        extent = np.max([mask.extent for mask in masks], axis=0) + _MARGIN
        step = max(1 / float(np.mean([mask.radius for mask in masks])), 2 * float(extent.max()) / (_MOST_POINTS - 1))
        sides = [np.arange(-np.ceil(reach / step), np.ceil(reach / step) + 1) * step for reach in extent]
        grid = np.stack(np.meshgrid(*sides, indexing="ij"))
        distances = [mask.distances(classes) for mask in masks]
        rotations = _registered(masks, [d[0] for d in distances], grid)
        vectors = np.stack(
            [
                mask.sampled(distance, grid, rotation).reshape(-1).astype(np.float32)
                for mask, distance, rotation in zip(masks, distances, rotations, strict=True)
            ]
        )
        volumes = np.array([float(mask.volume) for mask in masks])
        mean, components, slope, rest = _principal_components(vectors, np.log(volumes))
        order = np.argsort(hosts := np.array([digest(label) for label in labels]))
        return cls(
            classes=classes,
            axes=np.array([np.pad(s, (0, max(map(len, sides)) - len(s)), constant_values=np.nan) for s in sides]),
            lattice=np.array([len(side) for side in sides]),
            mean=mean,
            components=components,
            slope=slope,
            rest=rest,
            volumes=np.sort(volumes),
            hosts=hosts[order],
            rotations=np.stack(rotations)[order],
        )

    def draw(
        self,
        host: NDArray[np.uint8],
        rng: np.random.Generator,
        spread: float,
        volume_range: tuple[float, float],
        mirrored: bool = False,
        factors: Sequence[float] | None = None,
    ) -> NDArray[np.uint8]:
        """Draw a mask (X, Y, Z) with the pose of a training mask.

        First a volume is drawn, then the coefficients given the volume, by linear regression on its logarithm, so that
        a small structure gets the shape of small structures.

        Args:
            host: one of the masks that the model was fitted to.
            rng: source of the random numbers.
            spread: coefficients deviate from their mean by at most this many standard deviations.
            volume_range: quantiles of the training volumes between which the volume is drawn.
            mirrored: mirror the mask along the first axis.
            factors: smallest and largest factor by which the drawn volume is multiplied; None: it stays.
        """
        volume = float(np.quantile(self.volumes, rng.uniform(*volume_range)))
        if factors is not None:
            volume *= rng.uniform(factors[0], factors[1])
        deviations = rng.standard_normal(len(self.rest))
        while (far := np.abs(deviations) > spread).any():
            deviations[far] = rng.standard_normal(int(far.sum()))
        scores = self.slope * (np.log(volume) - np.log(self.volumes).mean()) + self.rest * deviations
        field = (self.mean + scores @ self.components).reshape(-1, *self.lattice)

        position = int(np.searchsorted(self.hosts, digest(host)))
        centre = np.argwhere(foreground(host)).mean(axis=0)
        away = (np.indices(host.shape).reshape(3, -1) - centre[:, None]) / _radius(volume)
        if mirrored:
            away[0] *= -1
        first, step = self.axes[:, 0], self.axes[0, 1] - self.axes[0, 0]
        positions = (self.rotations[position].T @ away - first[:, None]) / step
        planes = [map_coordinates(plane, positions, order=1, mode="nearest") for plane in field]
        # Take the voxels deepest inside, as many as the volume says, so that the mask has exactly this volume.
        inside = np.argsort(planes[0], kind="stable")[: round(volume)]
        mask = np.zeros(host.size, np.uint8)
        nearest = np.argmin([plane[inside] for plane in planes[1:]], axis=0) if len(planes) > 1 else 0
        mask[inside] = self.classes[nearest]
        return mask.reshape(host.shape)

    def save(self, file: BinaryIO) -> None:
        """Write an .npz file."""
        np.savez(file, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> ShapeModel:
        """Read what `save` wrote; raises OSError, ValueError or KeyError if the file is not such a file."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def digest(label: NDArray[np.uint8]) -> str:
    """SHA-256 of a mask, hexadecimal."""
    return hashlib.sha256(str(label.shape).encode() + np.ascontiguousarray(label).tobytes()).hexdigest()


@dataclass(frozen=True)
class _Mask:
    """A training mask, cropped to its foreground with a margin."""

    label: NDArray[np.uint8]
    start: Array
    centre: Array
    volume: int

    @classmethod
    def of(cls, label: NDArray[np.uint8]) -> _Mask:
        where = np.argwhere(foreground(label))
        pad = int(np.ceil(_MARGIN * _radius(len(where)))) + 1
        first, last = where.min(axis=0) - pad, where.max(axis=0) + pad + 1
        box = tuple(slice(max(0, a), b) for a, b in zip(first, last, strict=True))
        outside = [(max(0, -a), max(0, b - side)) for a, b, side in zip(first, last, label.shape, strict=True)]
        cropped = np.where(foreground(label[box]), label[box], 0)
        return cls(np.pad(cropped, outside), first.astype(float), where.mean(axis=0), len(where))

    @property
    def radius(self) -> float:
        return _radius(self.volume)

    @property
    def extent(self) -> Array:
        """How far the foreground reaches from its centre along each axis, in radii."""
        where = np.argwhere(self.label > 0) + self.start - self.centre
        return np.asarray(np.abs(where).max(axis=0) / self.radius)

    def distances(self, classes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(channels, *box) signed distances to the foreground and, if there are several, each class; radii, cut off."""
        parts = [self.label > 0, *([self.label == value for value in classes] if len(classes) > 1 else [])]
        limit = 2 * _MARGIN  # distance to a class that this mask lacks
        maps = [_signed_distance(part) / self.radius if part.any() else np.full(part.shape, limit) for part in parts]
        return np.clip(np.stack(maps), -_MARGIN, _MARGIN).astype(np.float32)

    def sampled(self, distances: NDArray[np.float32], grid: Array, rotation: Array) -> NDArray[np.float32]:
        """Sample the distances at points (3, *lattice) in the frame of the mean shape: (channels, *lattice)."""
        points = np.einsum("ij,j...->i...", rotation, grid) * self.radius
        positions = points + (self.centre - self.start)[:, None, None, None]
        return np.stack([map_coordinates(d, positions, order=1, mode="nearest") for d in distances])


def _radius(volume: float) -> float:
    """The radius of a ball with this volume."""
    return float((3 * volume / (4 * np.pi)) ** (1 / 3))


def _signed_distance(mask: NDArray[np.bool_]) -> Array:
    """Distance to the surface between voxels, in voxels; negative inside."""
    return np.asarray(np.where(mask, 0.5 - distance_transform_edt(mask), distance_transform_edt(~mask) - 0.5))


def _registered(masks: Sequence[_Mask], distances: Sequence[NDArray[np.float32]], grid: Array) -> list[Array]:
    """The rotation from the mean shape to each mask, refined once with the mean of the rotated masks."""
    rotations, grid = [np.eye(3)] * len(masks), grid[:, ::2, ::2, ::2]  # a rotation needs no finer lattice
    for _ in range(2):
        pairs = list(zip(masks, distances, strict=True))
        mean = np.mean([m.sampled(d[None], grid, r)[0] for (m, d), r in zip(pairs, rotations, strict=True)], axis=0)
        rotations = [_rotation(mean, m.sampled(d[None], grid, np.eye(3))[0]) for m, d in track(pairs, "registering")]
    return rotations


def _rotation(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> Array:
    """The rotation about the lattice's centre that maps points of `fixed` to those of `moving`, least squares."""
    images = [sitk.GetImageFromArray(np.ascontiguousarray(volume.T)) for volume in (fixed, moving)]
    transform = sitk.VersorTransform()
    transform.SetCenter([(side - 1) / 2 for side in fixed.shape])
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=0.1, minStep=1e-3, numberOfIterations=50)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetNumberOfThreads(1)  # with several threads, the order of sums and so the last digits would vary
    method.Execute(*images)
    return np.array(transform.GetMatrix()).reshape(3, 3)


def _principal_components(
    vectors: NDArray[np.float32], log_volumes: Array
) -> tuple[NDArray[np.float32], NDArray[np.float32], Array, Array]:
    """Mean, components, slope and rest, as in `ShapeModel`."""
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    # The eigenvectors of the small matrix of inner products give those of the covariance.
    values, basis = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    values, basis = values[::-1], basis[:, ::-1]
    number = int(np.searchsorted(np.cumsum(values) / values.sum(), _EXPLAINED)) + 1
    scale = np.sqrt(len(vectors) - 1)
    components = (basis[:, :number].T @ centred / scale).astype(np.float32)
    scores = basis[:, :number] * scale  # of unit variance
    away = log_volumes - log_volumes.mean()
    slope = away @ scores / max(float(away @ away), 1e-12)
    return mean, components, slope, (scores - np.outer(away, slope)).std(axis=0, ddof=1)
