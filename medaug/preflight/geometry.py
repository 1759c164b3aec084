"""Problems of the geometry, found from headers: of one grid, and of two grids that should be equal."""

from __future__ import annotations

import math
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding, Severity
from medaug.imaging.volume import (
    GRID_TOLERANCE_MM,
    RIGHT_ANGLE,
    SMALL_VOXELS,
    Header,
    corner_distance,
    distinct_sizes,
    shape_text,
    shear,
)

_SHEAR_WRONG = 1e-2
_SPACING_MM = (0.01, 20.0)
_EXTENT_MM = (2.0, 3000.0)
_LARGE_VOXELS = 512**3


def orientation(header: Header) -> str:
    """Return the patient direction nearest to each array axis, such as "RAS"."""
    return "".join(str(code) for code in nib.aff2axcodes(header.affine))


def check_grid(case: str, name: str, header: Header) -> Iterator[Finding]:
    """Find axes that are not at right angles, impossible voxel sizes and extents, and single slices.

    An angle that moves the far end of an axis by less than a tenth of a voxel counts as rounding, for example of
    direction cosines that were written with four decimals.
    """
    smallest, largest = min(header.spacing), max(header.spacing)
    extent = [size * side for size, side in zip(header.spacing, header.shape, strict=True)]
    cosines = shear(header.affine)
    cosine, moved = cosines.max(), (cosines * extent).max()
    if cosine > _SHEAR_WRONG or (cosine > RIGHT_ANGLE and moved > SMALL_VOXELS * smallest):
        severity: Severity = "error" if cosine > _SHEAR_WRONG else "warning"
        what = (
            f"{name} has axes that are not at right angles (off by {np.degrees(np.arcsin(min(cosine, 1))):.3g} degrees)"
        )
        remedy = "resample it to a grid with right angles: SimpleITK and nnU-Net read another grid, or refuse it"
        yield Finding(case, severity, "not-orthogonal", what, remedy)
    sizes = " x ".join(f"{size:.3g}" for size in header.spacing)
    if smallest < _SPACING_MM[0] or largest > _SPACING_MM[1]:
        what = f"{name} has voxels of {sizes} mm"
        remedy = "correct the voxel size or its unit in the header (metres, micrometres?), or convert the scan again"
        yield Finding(case, "error", "absurd-spacing", what, remedy)
    elif max(extent) < _EXTENT_MM[0] or max(extent) > _EXTENT_MM[1]:
        what = f"{name} measures {' x '.join(f'{side:.3g}' for side in extent)} mm (voxels of {sizes} mm)"
        yield Finding(case, "warning", "absurd-extent", what, "make sure that the header's voxel size is in mm")
    if min(header.shape) == 1:
        what = f"{name} is a single slice ({shape_text(header.shape)})"
        yield Finding(case, "warning", "single-slice", what, "give the whole volume, or train with network=unet2d")
    if math.prod(header.shape) > _LARGE_VOXELS:
        what = f"{name} has {shape_text(header.shape)} voxels, {math.prod(header.shape) * 4 / 2**30:.1f} GiB as float32"
        yield Finding(case, "note", "large-volume", what, "set data.max_side or data.spacing if memory runs short")


def check_doubts(case: str, name: str, header: Header) -> Iterator[Finding]:
    """Report what the reader had to assume about the geometry, and contradictions in the file."""
    for doubt in header.doubts:
        yield Finding(case, "warning", doubt.code, f"{name} {doubt.what}", doubt.remedy)


def compare_grids(case: str, name: str, grid: Header, reference_name: str, reference: Header) -> Iterator[Finding]:
    """Find a grid that differs from the reference's, and report how: in orientation, spacing, shape or position.

    At most one finding: a different orientation or spacing explains a different shape, and a different shape or
    spacing explains a different position. Distances between corners up to `GRID_TOLERANCE_MM` are ignored; up to the
    fraction `SMALL_VOXELS` of the smallest voxel side they are a warning.
    """
    same_shape = grid.shape == reference.shape
    distance = corner_distance(grid.shape, reference.affine, grid.affine) if same_shape else np.inf
    if distance <= GRID_TOLERANCE_MM:
        return
    if distance <= SMALL_VOXELS * min(reference.spacing):
        what = f"{name} lies {distance:.3g} mm away from the grid of {reference_name}"
        remedy = "copy the affine of one over the other if they show the same"
        yield Finding(case, "warning", "affine-differs", what, remedy)
        return
    shapes = "" if same_shape else f"shape {shape_text(grid.shape)} against {shape_text(reference.shape)}"
    also = f" ({shapes})" if shapes else ""
    remedy = f"resample it to the grid of {reference_name} (labels: nearest neighbour)"
    cosines = np.einsum("ij,ij->j", _directions(grid), _directions(reference))
    ratio = np.array(grid.spacing) / np.array(reference.spacing)
    if cosines.min() < np.sqrt(0.5):
        here, there = orientation(grid), orientation(reference)
        angle = np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))
        if here != there:
            what = f"{name} has orientation {here} against {there} of {reference_name}{also}"
        else:
            what = f"{name} has axes rotated by {angle:.0f} degrees against those of {reference_name}{also}"
        yield Finding(case, "error", "orientation-differs", what, remedy)
    elif np.any(np.abs(ratio - 1) * np.array(grid.shape) > SMALL_VOXELS):
        here, there = distinct_sizes(grid.spacing, reference.spacing, 4)
        what = f"{name} has spacing {here} mm against {there} mm of {reference_name}{also}"
        yield Finding(case, "error", "spacing-differs", what, remedy)
    elif shapes:
        yield Finding(case, "error", "shape-differs", f"{name} has {shapes} of {reference_name}", remedy)
    else:
        what = f"{name} lies {distance:.3g} mm away from the grid of {reference_name}"
        yield Finding(case, "error", "affine-differs", what, remedy)


def _directions(header: Header) -> NDArray[np.float64]:
    """Return the unit vectors of the array axes, as the columns of a (3, 3) matrix."""
    return np.asarray(header.affine[:3, :3] / np.array(header.spacing))
