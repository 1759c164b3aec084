"""The slices of a series, and the regular grid that fits their positions best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.dicom.headers import Series
from medaug.dicom.instance import Instance, Plane
from medaug.imaging.volume import LPS_TO_RAS


@dataclass(frozen=True)
class Slice:
    """One slice of a series: a file, or a frame of one."""

    instance: Instance
    frame: int
    plane: Plane

    @property
    def values(self) -> dict[str, str]:
        """Header values of this slice, by keyword."""
        return {**self.instance.attributes, **dict(self.plane.acquisition)}

    @property
    def position(self) -> NDArray[np.float64]:
        """ImagePositionPatient (3,), LPS mm."""
        return np.array(self.plane.position)

    @property
    def directions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Unit vectors (3,) of increasing column index, and of increasing row index."""
        row, column = np.array(self.plane.orientation).reshape(2, 3)
        return row / np.linalg.norm(row), column / np.linalg.norm(column)

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector (3,) along which slices are ordered."""
        normal = np.cross(*self.directions)
        return normal / np.linalg.norm(normal)


@dataclass(frozen=True)
class Stack:
    """Slices in ascending order along their normal, and the regular grid on which they lie.

    Attributes:
        slices: N slices.
        indices: (N,), index of each slice on the grid; an index that does not occur is a missing slice.
        affine: (4, 4) of the grid, (column, row, slice index) to RAS mm.
    """

    slices: tuple[Slice, ...]
    indices: NDArray[np.int64]
    affine: NDArray[np.float64]


def slices_of(series: Series) -> list[Slice]:
    """Return all slices of a series, in the order of its files and frames."""
    return [Slice(one, frame, plane) for one in series.instances for frame, plane in enumerate(one.planes)]


def by_position(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Group slices by position, in ascending order along the normal."""
    normal = slices[0].normal
    ordered = sorted(slices, key=lambda one: (one.position @ normal, one.instance.sop_instance_uid, one.frame))
    distances = np.array([one.position @ normal for one in ordered])
    # A hundredth of the spacing, but at least the rounding of coordinates, and at most what a scanner could resolve.
    same = np.clip(0.01 * np.diff(distances).max(), 1e-4, 0.01)
    groups = [[ordered[0]]]
    for one, gap in zip(ordered[1:], np.diff(distances), strict=True):
        if gap > same:
            groups.append([])
        groups[-1].append(one)
    return groups


def stack_of(slices: Sequence[Slice]) -> Stack:
    """Fit a regular grid to slices at distinct positions."""
    ordered = [group[0] for group in by_position(slices)]
    normal = ordered[0].normal
    gaps = np.diff([one.position @ normal for one in ordered])
    # The mean of all gaps without a missing slice, so that the rounding of a single position has little effect.
    usual = gaps[gaps < 1.5 * gaps.min()].mean()
    indices = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(gaps / usual)))]).astype(np.int64)
    row, column = ordered[0].directions
    between_rows, between_columns = ordered[0].plane.pixel_spacing or (np.nan, np.nan)
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    # A least-squares line through all positions, because any of them may be rounded, also the first and the last.
    positions, centred = np.array([one.position for one in ordered]), indices - indices.mean()
    affine[:3, 2] = centred @ positions / (centred @ centred)
    affine[:3, 3] = positions.mean(axis=0) - indices.mean() * affine[:3, 2]
    return Stack(tuple(ordered), indices, LPS_TO_RAS @ affine)


def right_angled(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the nearest affine (4, 4) with perpendicular axes, keeping the centre of the grid.

    Direction cosines are often written with three or four decimals, and readers of NIfTI refuse axes that are not
    perpendicular because of such rounding.

    Args:
        affine: (4, 4), with axes that are perpendicular up to rounding.
        shape: (X, Y, Z) of the grid.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    centre = (np.array(shape) - 1) / 2
    straight = np.eye(4)
    straight[:3, :3] = left @ right * lengths
    straight[:3, 3] = affine[:3, 3] + (affine[:3, :3] - straight[:3, :3]) @ centre
    return straight
