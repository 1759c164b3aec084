"""One invertible object between the host's grid and model space.

Model space: RAS orientation, one grid for the whole cohort, images in [-1, 1] with -1 as background, labels as
contiguous class indices. The object is fitted on the training split, stored in the checkpoint, and inverted on export.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray
from skimage.transform import resize

from medaug.errors import UserError

Shape = tuple[int, int, int]
BACKGROUND = -1.0
RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True)
class Placement:
    """What was done to one case: enough to undo it, and nothing else.

    Attributes:
        shape: the host's grid, voxels.
        orientation: nibabel orientation (axis, flip) of each host axis.
        resampled: shape after reorientation and resampling, before crop and pad.
        low, high: intensity of -1 and of 1, per modality, in the host's units.
    """

    shape: Shape
    orientation: tuple[tuple[int, int], ...]
    resampled: Shape
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def oriented(self) -> Shape:
        """The host's shape with its axes in RAS order."""
        sides = {axis: side for (axis, _), side in zip(self.orientation, self.shape, strict=True)}
        return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Preprocessing:
    """The model's grid and intensity scale for one cohort.

    Attributes:
        shape: the model's grid, voxels along R, A, S.
        spacing: voxel size in mm that scans are resampled to; None keeps every scan's own voxels.
        percentiles: intensities per volume and modality that become -1 and 1; what lies beyond is clipped.
    """

    shape: Shape
    spacing: tuple[float, float, float] | None
    percentiles: tuple[float, float]

    def apply_image(self, image: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[np.float32], Placement]:
        """Bring an image (M, X, Y, Z) in host units into model space: (M, *shape), float32 in [-1, 1]."""
        orientation = _orientation(affine)
        oriented = np.stack([apply_orientation(volume, orientation) for volume in image]).astype(np.float32)
        resampled = self.resampled_shape(oriented.shape[1:], affine)
        volumes = np.stack([_resize(volume, resampled) for volume in oriented])
        low, high = np.percentile(volumes.reshape(len(volumes), -1), self.percentiles, axis=1)
        high = np.maximum(high, low + 1e-6)
        scaled = 2 * (volumes - low[:, None, None, None]) / (high - low)[:, None, None, None] - 1
        scaled = np.clip(scaled, -1, 1).astype(np.float32)
        placement = Placement(
            shape=_triple(image.shape[1:]),
            orientation=tuple((int(axis), int(flip)) for axis, flip in orientation),
            resampled=resampled,
            low=tuple(float(v) for v in low),
            high=tuple(float(v) for v in high),
        )
        return np.stack([_fit(volume, self.shape, BACKGROUND) for volume in scaled]), placement

    def apply_label(self, label: NDArray[np.uint8], affine: NDArray[Any]) -> NDArray[np.uint8]:
        """Bring class indices (X, Y, Z) into model space: (*shape), uint8."""
        oriented = apply_orientation(label, _orientation(affine))
        return _fit(_resize_label(oriented, self.resampled_shape(oriented.shape, affine)), self.shape, 0)

    def invert_image(self, image: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
        """Bring (M, *shape) in [-1, 1] back to the host's grid and units; outside the model's grid: background."""
        back = _deorient(placement)
        volumes = [back(_resize(_fit(volume, placement.resampled, BACKGROUND), placement.oriented)) for volume in image]
        low, high = (np.asarray(v, np.float32)[:, None, None, None] for v in (placement.low, placement.high))
        return (low + (np.stack(volumes) + 1) / 2 * (high - low)).astype(np.float32)

    def invert_label(self, label: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
        """Bring class indices (*shape) back to the host's grid; outside the model's grid: background (0)."""
        restored = _resize_label(_fit(label, placement.resampled, 0), placement.oriented)
        return np.asarray(_deorient(placement)(restored))

    def resampled_shape(self, oriented: Sequence[int], affine: NDArray[Any]) -> Shape:
        """Shape of a scan after resampling, from its RAS-ordered shape and its affine (mm)."""
        if self.spacing is None:
            return _triple(oriented)
        old = _oriented_spacing(affine)
        return _triple([max(1, round(n * o / s)) for n, o, s in zip(oriented, old, self.spacing, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint that loads without running code."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        spacing = values["spacing"]
        low, high = values["percentiles"]
        return cls(_triple(values["shape"]), spacing and tuple(spacing), (low, high))


def fit_preprocessing(
    grids: Sequence[tuple[Sequence[int], NDArray[Any]]],
    *,
    shape: Sequence[int] | None,
    max_side: int | None,
    multiple: int,
    percentiles: Sequence[float],
) -> Preprocessing:
    """Choose the model's grid from the training scans' headers.

    Args:
        grids: (shape, affine) of every training scan.
        shape: the model's grid; None: the smallest that holds every training scan.
        max_side: coarsen, alike along all axes, until no side of any training scan has more voxels; None: never.
        multiple: each side of the model's grid is a multiple of this.
        percentiles: two numbers in 0..100.

    Raises:
        UserError: a given shape does not divide by `multiple`, or the percentiles are not in order.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise UserError(f"data.percentiles={list(percentiles)}: two ascending numbers within 0..100 are needed")
    oriented = [_oriented_shape(size, affine) for size, affine in grids]
    spacings = np.array([_oriented_spacing(affine) for _, affine in grids])
    largest = np.max(oriented, axis=0)
    spacing = None
    if max_side is not None and largest.max() > max_side:
        usual = np.median(spacings, axis=0)
        target = usual * max(1.0, np.max(np.array(oriented) * spacings / usual) / max_side)
        spacing = (float(target[0]), float(target[1]), float(target[2]))
        largest = np.max([np.round(n * s / target) for n, s in zip(oriented, spacings, strict=True)], axis=0)
    if shape is None:
        shape = [math.ceil(side / multiple) * multiple for side in largest]
    elif any(side % multiple for side in shape):
        raise UserError(
            f"data.shape={list(shape)}: each side must be a multiple of {multiple} for this codec and network"
        )
    return Preprocessing(_triple(shape), spacing, (float(low), float(high)))


def _triple(values: Sequence[Any]) -> Shape:
    x, y, z = (int(v) for v in values)
    return x, y, z


def _orientation(affine: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(io_orientation(affine)).astype(int)


def _oriented_shape(shape: Sequence[int], affine: NDArray[Any]) -> list[int]:
    axes = _orientation(affine)[:, 0].tolist()
    return [shape[axes.index(axis)] for axis in range(3)]


def _oriented_spacing(affine: NDArray[Any]) -> NDArray[np.float64]:
    sizes = nib.affines.voxel_sizes(affine)
    return np.array(_oriented_shape(sizes, affine), dtype=np.float64)


def _deorient(placement: Placement) -> Any:
    back = ornt_transform(RAS, np.array(placement.orientation))
    return lambda volume: apply_orientation(volume, back)


def _resize(volume: NDArray[Any], shape: Sequence[int]) -> NDArray[np.float32]:
    """Linear interpolation between grids of one field of view; smoothed first where it coarsens."""
    if volume.shape == tuple(shape):
        return np.asarray(volume, np.float32)
    coarser = any(new < old for new, old in zip(shape, volume.shape, strict=True))
    return resize(
        np.asarray(volume, np.float32),
        tuple(shape),
        order=1,
        mode="edge",
        anti_aliasing=coarser,
        preserve_range=True,
    ).astype(np.float32)


def _resize_label(label: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Every class resampled by itself, the largest share wins: no value that was not there, no bias to a class."""
    if label.shape == tuple(shape):
        return label
    classes = np.unique(label)
    shares = np.stack([_resize((label == value).astype(np.float32), shape) for value in classes])
    return classes[np.argmax(shares, axis=0)].astype(np.uint8)


def _fit(volume: NDArray[Any], shape: Sequence[int], fill: float) -> NDArray[Any]:
    """Crop and pad about the centre. Its own inverse up to what was cropped."""
    out = np.full(tuple(shape), fill, dtype=volume.dtype)
    source, target = [], []
    for old, new in zip(volume.shape, shape, strict=True):
        side = min(old, new)
        source.append(slice((old - side) // 2, (old - side) // 2 + side))
        target.append(slice((new - side) // 2, (new - side) // 2 + side))
    out[tuple(target)] = volume[tuple(source)]
    return out
