"""MetaImage and NRRD against SimpleITK, and every kind of bad file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_header, read_volume, read_volumes

TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
DIRECTION = (0, 1, 0, 0, 0, -1, -1, 0, 0)


def _image(dtype: str = "int16", seed: int = 0) -> sitk.Image:
    array = np.random.default_rng(seed).normal(60, 15, (7, 6, 5)).astype(dtype)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.7, 2.0))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(DIRECTION)
    return image


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).T


def _write(image: sitk.Image, path: Path, packed: bool = False) -> Path:
    sitk.WriteImage(image, str(path), packed)
    return path


def _replace(path: Path, old: str, new: str) -> Path:
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", TYPES)
def test_voxels_type_and_geometry_are_those_of_simpleitk(tmp_path: Path, dtype: str, suffix: str, packed: bool) -> None:
    image = _image(dtype)
    path = _write(image, tmp_path / f"a{suffix}", packed)
    volume, header = read_volume(path), read_header(path)
    assert volume.array.dtype == volume.dtype == header.dtype == dtype
    np.testing.assert_array_equal(volume.array, _array(image))
    np.testing.assert_allclose(volume.spacing, (0.5, 0.7, 2.0), atol=1e-12)
    for index in ((0, 0, 0), (4, 5, 6), (1, 0, 3)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)  # LPS
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], (-x, -y, z), atol=1e-9)
    assert (header.shape, header.num_volumes) == ((5, 6, 7), 1)
    np.testing.assert_array_equal(header.affine, volume.affine)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    suffix=st.sampled_from([".mha", ".nrrd"]),
)
def test_the_same_image_as_nifti_has_the_same_geometry(
    tmp_path: Path,
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    angles: tuple[float, float, float],
    suffix: str,
) -> None:
    image = _image()
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix())
    ours, nifti = (read_volume(_write(image, tmp_path / f"a{ending}")) for ending in (suffix, ".nii"))
    np.testing.assert_allclose(ours.affine, nifti.affine, atol=1e-3)  # ITK's NIfTI is in float32
    np.testing.assert_array_equal(ours.array, nifti.array)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fourth_axis_and_the_components_of_a_vector_are_volumes(tmp_path: Path, suffix: str, packed: bool) -> None:
    images = [_image(seed=seed) for seed in range(3)]
    four = sitk.JoinSeries(images)
    for name, stacked in (("four", four), ("vector", sitk.Compose(images))):
        path = _write(stacked, tmp_path / f"{name}{suffix}", packed)
        header, volumes = read_header(path), read_volumes(path)
        assert (header.shape, header.num_volumes, header.dtype) == ((5, 6, 7), 3, np.int16)
        assert len(volumes) == 3
        for volume, image in zip(volumes, images, strict=True):
            np.testing.assert_array_equal(volume.array, _array(image))
            np.testing.assert_allclose(volume.affine, header.affine)
            np.testing.assert_allclose((volume.affine @ [0, 0, 0, 1])[:3], (-10, 20, 30))
            np.testing.assert_allclose(volume.spacing, (0.5, 0.7, 2.0))
        with pytest.raises(UserError, match="holds 3 volumes, not one"):
            read_volume(path)


def test_world_axes_of_nrrd(tmp_path: Path) -> None:
    lps = read_volume(_write(_image(), tmp_path / "a.nrrd"))
    ras = read_volume(_replace(tmp_path / "a.nrrd", "left-posterior-superior", "right-anterior-superior"))
    np.testing.assert_allclose(ras.affine, np.diag([-1, -1, 1, 1]) @ lps.affine, atol=1e-12)


UNSAID = {
    "a.nhdr space: left-posterior-superior": ("space dimension: 3", ["no-orientation"]),
    "a.nhdr left-posterior-superior": ("3D-right-handed", ["no-orientation"]),
    "a.mhd TransformMatrix = 0 0 -1 1 0 0 0 -1 0\n": ("", ["no-orientation"]),
    "a.mhd ElementSpacing = 0.5 0.69999999999999996 2\n": ("", ["voxel-size-guessed"]),
}


@pytest.mark.parametrize("place", UNSAID)
def test_geometry_missing_in_the_header_is_a_doubt(tmp_path: Path, place: str) -> None:
    name, old = place.split(" ", 1)
    path = _write(_image(), tmp_path / name)
    assert read_header(path).doubts == ()
    new, codes = UNSAID[place]
    _replace(path, old, new)
    assert [doubt.code for doubt in read_header(path).doubts] == codes
    assert read_volume(path).doubts == read_header(path).doubts


def test_slicer_puts_components_last(tmp_path: Path) -> None:
    array = np.arange(2 * 4 * 5 * 6, dtype="<i2").reshape((4, 5, 6, 2), order="F")
    header = """NRRD0004
type: short
dimension: 4
space: left-posterior-superior
sizes: 4 5 6 2
space directions: (0,0,-1) (2,0,0) (0,-3,0) none
kinds: domain domain domain list
endian: little
encoding: raw
space origin: (10,20,30)

"""
    (tmp_path / "a.nrrd").write_bytes(header.encode() + array.tobytes(order="F"))
    volumes = read_volumes(tmp_path / "a.nrrd")
    assert len(volumes) == 2
    for index, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.array, array[..., index])


def _refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_volumes(path)
    message = str(error.value)
    assert message.isprintable()
    assert "; " in message
    assert "(0x" not in message
    return message


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_files_that_are_too_short_too_long_or_of_another_format(tmp_path: Path, suffix: str) -> None:
    raw = _write(_image(), tmp_path / f"raw{suffix}").read_bytes()
    packed = _write(_image(), tmp_path / f"packed{suffix}", True).read_bytes()
    path = tmp_path / f"a{suffix}"
    for content, reason in (
        (b"", "is empty"),
        (raw[:-1], "is too short for its shape 5x6x7"),
        (raw[:60], ""),
        (packed[:-1], "is cut short or damaged"),
        (packed[: len(packed) // 2], ""),
        (b"this is not an image" * 50, "is not a "),
        (bytes(4000), "is not a "),
    ):
        path.write_bytes(content)
        message = _refusal(path)
        assert message.startswith(f"{path}: ")
        assert reason in message
    with pytest.raises(UserError, match="too short"):
        path.write_bytes(raw[:-1])
        read_header(path)
    assert "does not exist" in _refusal(tmp_path / f"absent{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "Is a directory" in _refusal(tmp_path / f"folder{suffix}")
    assert "not UTF-8" in _refusal(_write(_image(), path).rename(tmp_path / os.fsdecode(b"a\xff" + suffix.encode())))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_every_flipped_bit_in_compressed_voxels_is_noticed(tmp_path: Path, suffix: str) -> None:
    # ITK 5.4 itself accepts every such MetaImage, and one NRRD in ten.
    image = _image()
    good = _write(image, tmp_path / f"a{suffix}", True).read_bytes()
    start = good.index(b"\n\n") + 2 if suffix == ".nrrd" else good.index(b"LOCAL\n") + 6
    for position in range(start, len(good), 3):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        (tmp_path / f"b{suffix}").write_bytes(damaged)
        try:
            volume = read_volume(tmp_path / f"b{suffix}")
        except UserError:
            continue
        np.testing.assert_array_equal(volume.array, _array(image))  # a bit without meaning, such as gzip's time stamp


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("suffix", "sizes"), [(".mha", "DimSize = 5 6 7"), (".nrrd", "sizes: 5 6 7")])
def test_a_header_that_claims_terabytes(tmp_path: Path, suffix: str, sizes: str, packed: bool) -> None:
    path = _write(_image(), tmp_path / f"a{suffix}", packed)
    _replace(path, sizes, sizes.replace("5 6 7", "30000 30000 30000"))
    assert "is too short for its shape 30000x30000x30000" in _refusal(path)
    with pytest.raises(UserError, match="too short"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_in_another_file(tmp_path: Path, suffix: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = _write(_image(), inside / f"a{suffix}")
    content = path.read_text()
    (tmp_path / "a.raw").write_bytes((inside / "a.raw").read_bytes())
    for target in ("../a.raw", str(tmp_path / "a.raw"), "/etc/hostname", "x/../../a.raw"):
        path.write_text(content.replace("a.raw", target))
        assert "outside its folder" in _refusal(path)
    for target in ("LIST\na.raw", "a%d.raw 1 1 1"):
        path.write_text(content.replace("a.raw", target))
        assert "in several files" in _refusal(path)
    path.write_text(content.replace("a.raw", "b.raw"))
    assert f"{path}: names a voxel file that does not exist (b.raw)" in _refusal(path)
    (inside / "sub").mkdir()
    (inside / "a.raw").rename(inside / "sub" / "ä b.raw")
    path.write_text(content.replace("a.raw", "sub/ä b.raw"))
    np.testing.assert_array_equal(read_volume(path).array, _array(_image()))
    other = "ElementDataFile = ../a.raw\n" if suffix == ".mhd" else "data file: ../a.raw\n"
    path.write_text(content + other)
    assert _refusal(path)


@pytest.mark.parametrize(
    ("suffix", "old", "new", "reason"),
    [
        (".mha", "TransformMatrix = 0 0 -1", "TransformMatrix = 0 0 0", "singular"),
        (".mha", "ElementSpacing = 0.5", "ElementSpacing = 0", "singular"),
        (".mha", "NDims = 3", "NDims = 2", "is not a 3-D volume (NDims 2)"),
        (".mha", "NDims = 3", "NDims = 2000000000", "is not a 3-D volume"),
        (".mha", "DimSize = 5 6 7", "DimSize = 5 6 -7", ""),
        (".mha", "DimSize = 5 6 7", "DimSize = 5 6 0", ""),
        (".mha", "BinaryData = True", "BinaryData = False", "as text"),
        (".mha", "MET_SHORT", "MET_NONSENSE", "is damaged"),
        (".nrrd", "(0,0,-0.5)", "(0,0,0)", "singular"),
        (".nrrd", "encoding: raw", "encoding: ascii", "an encoding that is not supported (ascii)"),
        (".nrrd", "type: short", "type: block\nblock size: 2", "is damaged"),
        (".nrrd", "dimension: 3", "dimension: 17", "is damaged"),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, suffix: str, old: str, new: str, reason: str) -> None:
    path = _replace(_write(_image(), tmp_path / f"a{suffix}"), old, new)
    assert reason in _refusal(path)


def test_images_that_are_not_volumes_of_numbers(tmp_path: Path) -> None:
    flat = sitk.Image(4, 5, sitk.sitkFloat32)
    assert "is not a 3-D volume (shape 4x5)" in _refusal(_write(flat, tmp_path / "flat.nrrd"))
    assert "is not a 3-D volume" in _refusal(_write(flat, tmp_path / "flat.mha"))
    five = sitk.JoinSeries([sitk.Compose(_image(), _image())] * 2)
    assert "is not a 3-D volume" in _refusal(_write(five, tmp_path / "five.mha"))
    complex_ = sitk.RealAndImaginaryToComplex(_image("float32"), _image("float32"))
    assert "complex" in _refusal(_write(complex_, tmp_path / "complex.nrrd")).lower()
    write_volume(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8), np.eye(4))
    assert "is not a NRRD file" in _refusal((tmp_path / "a.nii").rename(tmp_path / "nifti.nrrd"))


@pytest.mark.slow
def test_simpleitk_is_imported_only_when_needed() -> None:
    code = "import sys, medaug.imaging.reading; print('SimpleITK' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
