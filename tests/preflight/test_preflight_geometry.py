"""Comparison of two grids, against displacements that are known in closed form."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medaug.cohort.findings import Finding
from medaug.imaging.volume import Header, distinct_sizes
from medaug.preflight.geometry import check_grid, compare_grids, orientation

UPRIGHT = np.eye(3)

shapes = st.tuples(*[st.integers(2, 300)] * 3)
spacings = st.tuples(*[st.floats(0.1, 8)] * 3)
rotations = st.tuples(*[st.floats(-180, 180)] * 3).map(
    lambda a: Rotation.from_euler("xyz", a, degrees=True).as_matrix()
)
directions = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1)


def grid(shape, spacing, rotation=UPRIGHT, origin=(0, 0, 0)) -> Header:
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing)
    affine[:3, 3] = origin
    return Header(tuple(shape), affine, np.dtype("i2"))


def compare(a: Header, b: Header) -> Finding | None:
    found = list(compare_grids("case", "b.nii.gz", b, "a.nii.gz", a))
    assert len(found) <= 1
    return found[0] if found else None


@given(shapes, spacings, rotations, directions, st.floats(1e-5, 3))
def test_a_shift_is_judged_by_its_length(shape, spacing, rotation, direction, voxels):
    length = voxels * min(spacing)
    assume(all(abs(length / edge - 1) > 1e-3 for edge in (1e-3, 0.1 * min(spacing))))
    shift = np.array(direction) / np.linalg.norm(direction) * length
    found = compare(grid(shape, spacing, rotation), grid(shape, spacing, rotation, shift))
    if length < 1e-3:
        assert found is None
    else:
        assert found is not None and found.code == "affine-differs"
        assert found.severity == ("warning" if voxels < 0.1 else "error")
        assert float(found.what.split("lies ")[1].split(" mm")[0]) == pytest.approx(length, rel=6e-3)


@given(shapes, spacings, rotations, st.integers(0, 2), st.sampled_from([0.5, 0.8, 1.25, 2, 3]))
def test_another_voxel_size_is_reported_for_any_shape(shape, spacing, rotation, axis, factor):
    other = list(spacing)
    other[axis] *= factor
    assume((shape[axis] - 1) * abs(factor - 1) * spacing[axis] > 0.1 * min(spacing))
    resampled = [round(side / factor) + 1 if index == axis else side for index, side in enumerate(shape)]
    for new in (shape, resampled):
        found = compare(grid(shape, spacing, rotation), grid(new, other, rotation))
        assert found is not None and (found.code, found.severity) == ("spacing-differs", "error")
        assert ("(shape" in found.what) == (tuple(new) != shape)


@given(st.tuples(*[st.integers(3, 60)] * 3), spacings, st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_the_same_voxels_along_other_axes_are_another_orientation(shape, spacing, order, flips):
    a = grid(shape, spacing)
    ornt = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    codes = nib.orientations.ornt2axcodes(nib.orientations.io_orientation(a.affine))
    turned = nib.Nifti1Image(np.zeros(shape, "u1"), a.affine).as_reoriented(ornt)
    b = Header(turned.shape, turned.affine, a.dtype)
    found = compare(a, b)
    if "".join(codes) == orientation(b):
        assert found is None
    else:
        assert found is not None and (found.code, found.severity) == ("orientation-differs", "error")
        assert f"orientation {orientation(b)} against RAS" in found.what


@given(shapes, spacings, rotations)
def test_a_grid_of_another_size_is_reported_as_a_shape(shape, spacing, rotation):
    found = compare(grid(shape, spacing, rotation), grid((shape[0] + 1, *shape[1:]), spacing, rotation))
    assert found is not None and (found.code, found.severity) == ("shape-differs", "error")


@given(st.floats(10, 40))
def test_a_small_rotation_is_reported_as_a_position(degrees):
    # At 45 degrees the nearest axes change, and with them the codes, although the grid hardly moved.
    turns = (Rotation.from_euler("z", angle, degrees=True).as_matrix() for angle in (44.9999, 45.0001))
    a, b = (grid((5, 5, 5), (1, 1, 1), turn) for turn in turns)
    assert orientation(a) != orientation(b) and compare(a, b) is None
    turned = compare(
        grid((50, 50, 50), (1, 1, 1)),
        grid((50, 50, 50), (1, 1, 1), Rotation.from_euler("x", degrees, True).as_matrix()),
    )
    assert turned is not None and turned.code == "affine-differs"


@given(spacings, rotations, st.floats(1e-6, 0.3))
def test_shear_is_judged_by_the_angle_and_by_the_shift_of_corners(spacing, rotation, cosine):
    moved = cosine * 100 * max(spacing[:2]) / min(spacing)  # voxels, at the far end of the longer axis
    assume(min(abs(cosine - 1e-4), abs(cosine - 1e-2), abs(moved - 0.1) / 100) > 1e-6)
    skew = np.eye(3)
    skew[:, 1] = cosine, np.sqrt(1 - cosine**2), 0
    found = [
        f
        for f in check_grid("case", "a", grid((100, 100, 100), spacing, rotation @ skew))
        if f.code == "not-orthogonal"
    ]
    expected = ["error"] if cosine > 1e-2 else ["warning"] if cosine > 1e-4 and moved > 0.1 else []
    assert [f.severity for f in found] == expected


def test_voxel_sizes_are_printed_with_enough_digits():
    found = compare(grid((512, 512, 40), (1, 1, 5)), grid((512, 512, 40), (1.0003, 1, 5)))
    assert found is not None and "has spacing 1.0003 x 1 x 5 mm against 1 x 1 x 5 mm" in found.what
    assert distinct_sizes((1, 2.5, 1e-3), (1.0004, 2.5, 1e-3)) == ("1 x 2.5 x 0.001", "1.0004 x 2.5 x 0.001")
    assert distinct_sizes((1, 1, 1), (1 + 1e-9, 1, 1)) == ("1 x 1 x 1",) * 2  # equal except for rounding


@given(shapes, st.tuples(*[st.floats(0.3, 6)] * 3), rotations)
def test_grids_of_real_scans_have_no_findings(shape, spacing, rotation):
    assume(5 < max(np.array(shape) * spacing) < 2500)
    assert list(check_grid("case", "a", grid(shape, spacing, rotation))) == []
