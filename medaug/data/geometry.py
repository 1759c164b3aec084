"""From a scan's own grid to the model's and back: orientation, crop, resampling, crop and pad. No intensities.

`ModelGrid.region` is the box of host voxels that the model's grid covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from numpy.typing import NDArray

from medaug.data.grid import Shape, Spacing, orientation_of, oriented_spacing, resampled_shape
from medaug.data.resampling import coarse_axis, resample_image, resample_label

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along each axis, voxels."""

RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True)
class Geometry:
    """How the grid of one scan (the host) maps to the model's grid; enough to undo it.

    Attributes:
        shape: the host's grid, voxels.
        orientation: nibabel orientation (axis, flip) of each host axis.
        resampled: shape after reorientation, crop to the body and resampling, before crop and pad to the model's grid.
        box: the part of the reoriented host that the crop to the body keeps; None: all of it.
        coarse: the axis (R, A or S: 0, 1 or 2) of thick slices, across which interpolation is linear; None: none.
    """

    shape: Shape
    orientation: tuple[tuple[int, int], ...]
    resampled: Shape
    box: Box | None = field(default=None, kw_only=True)
    coarse: int | None = field(default=None, kw_only=True)

    @property
    def oriented(self) -> Shape:
        """The host's shape with its axes in RAS order."""
        sides = {axis: side for (axis, _), side in zip(self.orientation, self.shape, strict=True)}
        return sides[0], sides[1], sides[2]

    @property
    def kept(self) -> Box:
        """The box of the reoriented host that is resampled."""
        x, y, z = self.oriented
        return self.box or ((0, x), (0, y), (0, z))

    def cropped(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Bring the axes of a host volume (X, Y, Z) into RAS order and crop it to `kept`."""
        return np.asarray(apply_orientation(volume, np.array(self.orientation))[_slices(self.kept)])


@dataclass(frozen=True)
class ModelGrid:
    """The common grid of all scans in model space.

    Attributes:
        shape: voxels along R, A, S.
        spacing: voxel size in mm that scans are resampled to; None keeps each scan's own voxel size.
    """

    shape: Shape
    spacing: Spacing | None

    def locate(self, shape: Sequence[int], affine: NDArray[Any], box: Box | None = None) -> Geometry:
        """The geometry of a scan with this shape and affine (4, 4) mm, cropped to `box` of the reoriented scan."""
        orientation, spacing = orientation_of(affine), oriented_spacing(affine)
        x, y, z = shape
        pairs = tuple((int(axis), int(flip)) for axis, flip in orientation)
        kept = [stop - start for start, stop in Geometry((x, y, z), pairs, (x, y, z), box=box).kept]
        return Geometry(
            shape=(x, y, z),
            orientation=pairs,
            resampled=resampled_shape(kept, spacing, self.spacing),
            box=box,
            coarse=coarse_axis(spacing, self.spacing) if self.spacing else None,
        )

    def place(self, volume: NDArray[Any], geometry: Geometry, fill: float) -> NDArray[np.float64]:
        """Bring a volume (X, Y, Z) of the host to the grid: (*shape), float64, `fill` beyond the scan."""
        return self.fit(self.resample(geometry.cropped(volume), geometry), fill)

    def place_label(self, label: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Bring the class indices (X, Y, Z) of a case to the grid: (*shape), uint8, 0 beyond the scan."""
        return self.fit(resample_label(geometry.cropped(label), geometry.resampled), 0)

    def resample(self, volume: NDArray[Any], geometry: Geometry) -> NDArray[np.float64]:
        """Interpolate a cropped volume to the shape `geometry.resampled`."""
        return resample_image(volume.astype(np.float64), geometry.resampled, geometry.coarse)

    def fit(self, volume: NDArray[Any], fill: float) -> NDArray[Any]:
        """Crop and pad a resampled volume about the centre to the grid, with `fill`."""
        return _fit(volume, self.shape, fill)

    def restore(
        self, volume: NDArray[Any], geometry: Geometry, fill: float, factor: NDArray[Any] | None = None
    ) -> NDArray[np.float32]:
        """Bring a volume (*shape) back to the host's grid, float32; `fill` outside `region`.

        The interpolated values are multiplied by `factor`, which lies on the grid of `geometry.kept`.
        """
        kept = [stop - start for start, stop in geometry.kept]
        values = resample_image(_fit(volume.astype(np.float64), geometry.resampled, None), kept, geometry.coarse)
        if factor is not None:
            values = values * factor
        return self._put_back(values, geometry, fill).astype(np.float32)

    def restore_label(self, label: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Bring class indices (*shape) back to the host's grid; 0 outside `region`."""
        kept = [stop - start for start, stop in geometry.kept]
        return self._put_back(resample_label(_fit(label, geometry.resampled, None), kept), geometry, 0)

    def region(self, geometry: Geometry) -> Box:
        """The host voxels, along the host's own axes, whose centres lie within the grid."""
        covered = self._covered(geometry)
        x, y, z = (
            (start, stop) if flip > 0 else (side - stop, side - start)
            for (axis, flip), side in zip(geometry.orientation, geometry.shape, strict=True)
            for start, stop in [covered[axis]]
        )
        return x, y, z

    def inside(self, geometry: Geometry) -> NDArray[np.bool_]:
        """The voxels of the grid that lie in the scan, (*shape); the others are padding."""
        return in_box([filled(*sides) for sides in zip(geometry.resampled, self.shape, strict=True)], self.shape)

    def _covered(self, geometry: Geometry) -> Box:
        """`region` along the axes of the reoriented host."""
        ends = []
        for (start, stop), new, model in zip(geometry.kept, geometry.resampled, self.shape, strict=True):
            first = max(0, (new - model) // 2)
            # Voxel h has its centre at (h + 1/2) * new / old of the resampled grid.
            edges = [-(-(2 * edge * (stop - start) - new) // (2 * new)) for edge in (first, first + min(new, model))]
            ends.append((start + edges[0], start + edges[1]))
        x, y, z = ends
        return x, y, z

    def _put_back(self, values: NDArray[Any], geometry: Geometry, fill: float) -> NDArray[Any]:
        """Put the covered part of a volume on the grid of `kept` into the host's grid, which is `fill` elsewhere."""
        host = np.full(geometry.oriented, fill, values.dtype)
        covered = self._covered(geometry)
        inner = [(a - start, b - start) for (a, b), (start, _) in zip(covered, geometry.kept, strict=True)]
        host[_slices(covered)] = values[_slices(inner)]
        return np.asarray(apply_orientation(host, ornt_transform(RAS, np.array(geometry.orientation))))


def filled(scan: int, model: int) -> slice:
    """The part of one side of the model's grid that a resampled scan fills after the central crop and pad."""
    before = max(0, (model - scan) // 2)
    return slice(before, before + min(scan, model))


def in_box(box: Sequence[slice], shape: Sequence[int]) -> NDArray[np.bool_]:
    """A volume of this shape, true in the box."""
    inside = np.zeros(shape, bool)
    inside[tuple(box)] = True
    return inside


def _slices(box: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def _fit(volume: NDArray[Any], shape: Sequence[int], fill: float | None) -> NDArray[Any]:
    """Crop and pad about the centre, with `fill` or (None) the edge voxels; swapping the shapes undoes the padding."""
    source, pad = [], []
    for old, new in zip(volume.shape, shape, strict=True):
        source.append(filled(new, old))
        before = filled(old, new).start
        pad.append((before, max(0, new - old) - before))
    cropped = volume[tuple(source)]
    return np.pad(cropped, pad, mode="edge") if fill is None else np.pad(cropped, pad, constant_values=fill)
