"""Where the geometry of a NIfTI file comes from, and the doubts that are reported about incomplete headers."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from test_nifti import _affine, _image, _world

from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_header, read_volume


def _forms(path: Path, **fields: object) -> Path:
    """A NIfTI with a rotated qform (0.9 x 1.1 x 3 mm), no sform, and changed header fields."""
    image = nib.Nifti1Image(_image(), _affine())
    image.set_sform(None, 0)
    image.set_qform(_affine(), 1)
    content = bytearray(image.to_bytes())
    header = image.header.copy()
    for field, value in fields.items():
        header.structarr[field] = value
    content[: header.sizeof_hdr] = header.binaryblock
    path.write_bytes(content)
    return path


def _quaternion(length: float) -> dict[str, float]:
    """A rotation by 180 degrees, given by a quaternion whose length is not 1."""
    b, c, d = length * np.array([0.36, 0.48, 0.8])
    return {"quatern_b": b, "quatern_c": c, "quatern_d": d}


AS_READERS_IN_C_READ_IT: dict[str, dict[str, object]] = {
    "quaternion a hair too long": _quaternion(1 + 4e-7),
    "quaternion of six digits": _quaternion(1 + 4e-6),
    "quaternion a little too long": _quaternion(1.001),
    "qfac rounded": {"pixdim": [-0.9999999, 0.9, 1.1, 3, 0, 0, 0, 0]},
    "qfac of the right side": {"pixdim": [0.9999999, 0.9, 1.1, 3, 0, 0, 0, 0]},
    "qfac missing": {"pixdim": [0, 0.9, 1.1, 3, 0, 0, 0, 0]},
    "code of a later standard": {"qform_code": 6},
    "code of another byte order": {"qform_code": 256},
}


@pytest.mark.parametrize("name", AS_READERS_IN_C_READ_IT)
def test_a_qform_is_read_as_readers_in_c_read_it(tmp_path: Path, name: str) -> None:
    path = _forms(tmp_path / "q.nii", **AS_READERS_IN_C_READ_IT[name])
    header, itk = read_header(path), sitk.ReadImage(str(path))
    for index in ((0, 0, 0), (4, 5, 6), (0, 5, 0)):
        np.testing.assert_allclose((header.affine @ [*index, 1])[:3], _world(itk, index), atol=1e-4)
    assert [doubt.code for doubt in header.doubts] == (
        ["qform-not-rotation"] if name.endswith("little too long") else []
    )
    assert header.doubts == read_volume(path).header.doubts


def test_an_invalid_quaternion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a rotation \(the quaternion .* has length 1\.3, not 1\); correct"):
        read_header(_forms(tmp_path / "q.nii", **_quaternion(1.3)))
    image = nib.load(_forms(tmp_path / "q.nii"))
    image.set_sform(_affine(), 1)
    for field, value in _quaternion(1.3).items():
        image.header[field] = value
    nib.save(image, tmp_path / "s.nii")  # the sform is used, so the quaternion does not matter
    np.testing.assert_allclose(read_header(tmp_path / "s.nii").affine, _affine(), atol=1e-5)


def _pixdim(*sizes: float) -> dict[str, object]:
    return {"pixdim": [1, *sizes, 0, 0, 0, 0]}


SFORM = {f"srow_{axis}": row for axis, row in zip("xyz", _affine()[:3], strict=True)} | {"sform_code": 1}
SHEARED = SFORM | {"srow_x": _affine()[0] + [0, 0.003, 0, 0], "qform_code": 0}
GUESSES: dict[str, tuple[dict[str, object], str, str]] = {
    "neither form": (
        {"qform_code": 0},
        "no-orientation",
        "has neither sform nor qform: which side is left is a guess (its axes were assumed to be LAS)",
    ),
    "negative code": ({"qform_code": -1}, "no-orientation", "has neither sform nor qform"),
    "no distance of slices": (
        _pixdim(0.9, 1.1, 0),
        "voxel-size-guessed",
        "has the voxel size 0 along axis 3 in its header (pixdim)",
    ),
    "negative voxel size": (
        _pixdim(-0.9, 1.1, 3),
        "voxel-size-guessed",
        "has the voxel size -0.9 along axis 1 in its header (pixdim)",
    ),
    "pixdim beside an sform": (
        SFORM | {"qform_code": 0} | _pixdim(0.9, 1.1, 1),
        "pixdim-differs",
        "has voxels of 0.9 x 1.1 x 3 mm by its sform and of 0.9 x 1.1 x 1 mm by its pixdim",
    ),
    "two forms": (SFORM | {"qoffset_x": 0}, "sform-qform-differ", "has two affines, 12.5 mm apart"),
    "sheared sform alone": (SHEARED, "not-orthogonal", "has an sform whose axes are not at right angles, and no qform"),
}


@pytest.mark.parametrize("name", GUESSES)
def test_assumptions_about_the_geometry_are_reported(tmp_path: Path, name: str) -> None:
    fields, code, words = GUESSES[name]
    path = _forms(tmp_path / "a.nii", **fields)
    (doubt,) = read_header(path).doubts
    assert doubt.code == code
    assert doubt.what.startswith(words) and doubt.remedy
    np.testing.assert_array_equal(read_header(path).affine, nib.load(path).affine)  # the guess is nibabel's


def test_a_complete_geometry_gives_no_doubt(tmp_path: Path) -> None:
    write_volume(tmp_path / "ours.nii.gz", _image(), _affine())
    for fields in ({}, SFORM, SFORM | {"qform_code": 0} | _pixdim(0.9, 1.1, 3)):
        assert read_header(_forms(tmp_path / "a.nii", **fields)).doubts == ()
    assert read_header(tmp_path / "ours.nii.gz").doubts == ()
