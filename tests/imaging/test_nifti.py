"""Reading and writing NIfTI, against nibabel and SimpleITK, and every kind of bad file."""

from __future__ import annotations

import errno
import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_header, read_images, read_label, read_volume, read_volumes
from medaug.imaging.volume import Header, Volume, corner_distance, grid_difference

SHAPE = (5, 6, 7)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK's world axes


def _affine(spacing: tuple[float, ...] = (0.9, 1.1, 3.0), angle: float = 0.3, flip: bool = True) -> np.ndarray:
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing) @ np.diag([-1 if flip else 1, 1, 1])
    affine[:3, 3] = (-12.5, 40.25, 7)
    return affine


def _image(seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, SHAPE).astype(dtype)


def _world(image: sitk.Image, index: tuple[int, ...]) -> np.ndarray:
    return (LPS @ [*image.TransformIndexToPhysicalPoint(index), 1])[:3]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_written_files_are_read_equally_by_nibabel_and_simpleitk(tmp_path: Path, dtype: str, suffix: str) -> None:
    path, affine, array = tmp_path / f"a{suffix}", _affine(), _image(dtype=dtype)
    write_volume(path, array, affine, "medaug")

    other = nib.Nifti1Image.from_filename(path)
    assert other.get_data_dtype() == dtype
    assert other.header.get_xyzt_units()[0] == "mm"
    assert (int(other.header["qform_code"]), int(other.header["sform_code"])) == (1, 1)
    np.testing.assert_array_equal(np.asanyarray(other.dataobj), array)
    np.testing.assert_allclose(other.affine, affine, atol=1e-5)
    np.testing.assert_allclose(other.get_qform(), affine, atol=1e-4)

    itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).transpose(2, 1, 0), array)
    for index in ((0, 0, 0), (4, 5, 6), (0, 5, 0)):
        np.testing.assert_allclose(_world(itk, index), (affine @ [*index, 1])[:3], atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_files_of_other_tools_are_read_correctly(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(_image().transpose(2, 1, 0))
    image.SetSpacing((0.5, 0.7, 2.0))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 1, 0, 0, 0, -1, -1, 0, 0))
    sitk.WriteImage(image, str(tmp_path / "itk.nii.gz"))
    volume = read_volume(tmp_path / "itk.nii.gz")
    np.testing.assert_array_equal(volume.array, _image())
    np.testing.assert_allclose(volume.spacing, (0.5, 0.7, 2.0), atol=1e-6)
    for index in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], _world(image, index), atol=1e-5)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    angle=st.floats(-3, 3),
    flip=st.booleans(),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
)
def test_a_second_round_trip_changes_nothing(
    tmp_path: Path, spacing: tuple[float, ...], angle: float, flip: bool, dtype: str
) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, _image(dtype=dtype), _affine(spacing, angle, flip))
    first = read_volume(path)
    np.testing.assert_allclose(first.spacing, spacing, rtol=1e-5)
    write_volume(path, first.array, first.affine)
    second, content = read_volume(path), path.read_bytes()
    np.testing.assert_array_equal(second.array, first.array)
    np.testing.assert_array_equal(second.affine, first.affine)
    write_volume(path, first.array, first.affine)
    assert path.read_bytes() == content
    assert first.dtype == first.array.dtype == dtype


def test_sform_wins_over_qform_and_units_become_millimetres(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_image(), np.eye(4))
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    image.set_sform(_affine(), 2)
    nib.save(image, tmp_path / "both.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "both.nii").affine, _affine(), atol=1e-5)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "q.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "q.nii").affine, np.diag([2, 2, 2, 1]), atol=1e-5)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "metre.nii")
    assert read_volume(tmp_path / "metre.nii").spacing == pytest.approx((2000, 2000, 2000))
    assert sitk.ReadImage(str(tmp_path / "metre.nii")).GetSpacing() == pytest.approx((2000, 2000, 2000))


def test_scaled_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_image(dtype="int16"), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "scaled.nii.gz")
    volume = read_volume(tmp_path / "scaled.nii.gz")
    assert volume.dtype == np.int16
    np.testing.assert_allclose(volume.array, _image(dtype="int16") * 0.5 - 10)


def test_modalities_as_files_and_as_one_4d_file_are_the_same(tmp_path: Path) -> None:
    arrays = [_image(seed) for seed in range(3)]
    for number, array in enumerate(arrays):
        write_volume(tmp_path / f"{number}.nii.gz", array, _affine())
    nib.save(nib.Nifti1Image(np.stack(arrays, -1), _affine()), tmp_path / "four.nii.gz")
    files, affine, dtype = read_images([tmp_path / f"{number}.nii.gz" for number in range(3)])
    four, affine_four, _ = read_images([tmp_path / "four.nii.gz"])
    assert files.shape == (3, *SHAPE)
    assert files.dtype == np.float32
    assert dtype == np.float32
    np.testing.assert_array_equal(files, np.stack(arrays))
    np.testing.assert_array_equal(four, files)
    np.testing.assert_allclose(affine_four, affine, atol=1e-6)
    with pytest.raises(UserError, match="holds 3 volumes, not one"):
        read_volume(tmp_path / "four.nii.gz")
    assert len(read_volumes(tmp_path / "four.nii.gz")) == 3


def test_modalities_with_different_grids_are_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "t1.nii.gz", _image(), _affine())
    write_volume(tmp_path / "small.nii.gz", _image()[1:], _affine())
    write_volume(tmp_path / "near.nii.gz", _image(), _affine(angle=0.301))
    write_volume(tmp_path / "moved.nii.gz", _image(), _affine(angle=0.35))
    with pytest.raises(UserError, match=r"small\.nii\.gz: has shape 4x6x7 against 5x6x7 of t1"):
        read_images([tmp_path / "t1.nii.gz", tmp_path / "small.nii.gz"])
    with pytest.raises(UserError, match=r"moved\.nii\.gz: lies .* mm away from the grid of t1"):
        read_images([tmp_path / "t1.nii.gz", tmp_path / "moved.nii.gz"])
    read_images([tmp_path / "t1.nii.gz", tmp_path / "near.nii.gz"])  # by less than a tenth of a voxel: preflight warns


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_values_are_refused(tmp_path: Path, value: float) -> None:
    array = _image()
    array[2, 3, 4] = value
    write_volume(tmp_path / "a.nii.gz", array, _affine())
    with pytest.raises(UserError, match="NaN or infinite"):
        read_images([tmp_path / "a.nii.gz"])


@given(offset=st.tuples(*[st.floats(-2, 2)] * 3))
def test_corner_distance_of_a_shift_is_its_length(offset: tuple[float, ...]) -> None:
    moved = _affine()
    moved[:3, 3] += offset
    assert corner_distance(SHAPE, _affine(), moved) == pytest.approx(np.linalg.norm(offset), abs=1e-12)


def test_corner_distance_of_a_stretch_is_at_the_far_corner() -> None:
    assert corner_distance((5, 5, 5), np.eye(4), np.diag([1.1, 1, 1, 1])) == pytest.approx(0.4)
    volumes = [Volume(_image(), affine, np.dtype("f4")) for affine in (np.eye(4), np.diag([1.0001, 1, 1, 1]))]
    assert grid_difference(*(volume.header for volume in volumes)) == ""  # 0.0004 mm
    assert "lies 2 mm" in grid_difference(
        volumes[0].header, Header((5, 6, 7), np.eye(4) + 2 * np.eye(4, k=3), np.dtype("f4"))
    )


def _damage(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Return bad files by kind, each with a part of the message."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(20, 20, 20)).astype(np.float32)
    good, plain = tmp_path / "good.nii.gz", tmp_path / "good.nii"
    write_volume(good, array, np.eye(4))
    write_volume(plain, array, np.eye(4))
    packed, raw = good.read_bytes(), bytearray(plain.read_bytes())
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    huge = bytearray(raw)
    huge[42:48] = np.array([30000] * 3, "<i2").tobytes()
    singular = bytearray(raw)
    singular[280:296] = bytes(16)
    negative = bytearray(raw)
    negative[42:44] = np.array([-4], "<i2").tobytes()
    pair = bytearray(raw)
    pair[344:348] = b"ni1\0"
    contents = {
        "pair.nii": (bytes(pair), "is not a NIfTI file"),
        "zero.nii.gz": (b"", "zero bytes"),
        "cut.nii.gz": (packed[: len(packed) // 2], "cut short or damaged"),
        "cut_in_header.nii.gz": (packed[:40], "cut short or damaged"),
        "flipped.nii.gz": (bytes(flipped), "cut short or damaged"),
        "text.nii.gz": (b"this is not an image" * 50, "is not a gzip file"),
        "text.nii": (b"this is not an image" * 50, "is not a NIfTI file"),
        "html.nii.gz": (gzip.compress(b"<html>404</html>" * 50), "is not a NIfTI file"),
        "cut.nii": (bytes(raw[:5000]), "too short"),
        "huge.nii.gz": (gzip.compress(bytes(huge)), "too short"),
        "singular.nii": (bytes(singular), "singular"),
        "negative.nii": (bytes(negative), ""),
    }
    files = {}
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        files[name] = (tmp_path / name, reason)
    nib.save(nib.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4)), tmp_path / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 1, 3), np.uint8), np.eye(4)), tmp_path / "five.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), tmp_path / "complex.nii.gz")
    nib.save(nib.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "free.mgz")
    (tmp_path / "folder.nii.gz").mkdir()
    files |= {
        "flat.nii.gz": (tmp_path / "flat.nii.gz", "not a 3-D volume (shape 4x4)"),
        "five.nii.gz": (tmp_path / "five.nii.gz", "not a 3-D volume"),
        "complex.nii.gz": (tmp_path / "complex.nii.gz", "not plain numbers"),
        "free.mgz": (tmp_path / "free.mgz", "has a format that is not supported"),
        "folder.nii.gz": (tmp_path / "folder.nii.gz", "cannot be read (Is a directory)"),
        "absent.nii.gz": (tmp_path / "absent.nii.gz", "does not exist"),
    }
    return files


def test_nifti_2(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(_image(), _affine()), tmp_path / "two.nii.gz")
    volume = read_volume(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(volume.array, _image())
    np.testing.assert_allclose(volume.affine, _affine(), atol=1e-9)


HEADERS = ["a.nii", "a.nii.gz"]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_headers_are_those_of_nibabel(tmp_path: Path, kind: type[nib.Nifti1Image], order: str, name: str) -> None:
    for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"):
        for shape in (SHAPE, (*SHAPE, 3)):
            array = np.random.default_rng(0).normal(60, 15, shape).astype(dtype)
            image = kind(array, _affine(), kind.header_class(endianness=order), dtype=dtype)
            image.header["descrip"] = b"x" * 80
            nib.save(image, tmp_path / name)
            header, other = read_header(tmp_path / name), nib.load(tmp_path / name)
            assert (header.shape, header.num_volumes) == (SHAPE, 1 if len(shape) == 3 else 3)
            assert header.dtype == other.get_data_dtype()
            assert header.dtype.newbyteorder("=") == np.dtype(dtype)
            np.testing.assert_array_equal(header.affine, other.affine)
            volumes = read_volumes(tmp_path / name)
            stack = np.stack([volume.array for volume in volumes], -1).reshape(shape)
            np.testing.assert_array_equal(stack, array)
            assert {volume.dtype for volume in volumes} == {header.dtype}


@pytest.mark.parametrize("name", HEADERS)
def test_scaled_values_are_those_of_nibabel(tmp_path: Path, name: str) -> None:
    for dtype in ("u1", "i2", "i4", "f4"):
        for slope, intercept in ((0.5, -10), (1, 3), (2, 0), (float("nan"), 5), (1e30, 1e30)):
            image = nib.Nifti1Image(_image(dtype=dtype), np.eye(4), dtype=dtype)
            content = bytearray(image.to_bytes())
            content[112:120] = np.array([slope, intercept], "<f4").tobytes()
            (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
            ours, theirs = read_volume(tmp_path / name).array, np.asanyarray(nib.load(tmp_path / name).dataobj)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_headers_are_read_without_the_voxels(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(90, 90, 90)), np.eye(4))
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[:20_000])
    assert read_header(tmp_path / "cut.nii.gz").shape == (90, 90, 90)
    start = time.process_time()
    for _ in range(200):
        read_header(tmp_path / "a.nii.gz")
    assert time.process_time() - start < 2  # 0.1 s; reading them whole takes 20 s


def test_faults_of_the_header_are_refused_by_both_readers(tmp_path: Path) -> None:
    unseen = {"cut.nii.gz", "flipped.nii.gz"}
    for name, (path, reason) in _damage(tmp_path).items():
        if name in unseen:
            read_header(path)
            continue
        with pytest.raises(UserError) as error:
            read_header(path)
        assert reason in str(error.value)


def test_extensions_and_several_gzip_members_and_padding(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_image(), _affine())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    content = image.to_bytes()
    members = gzip.compress(content[:3000]) + gzip.compress(content[3000:])
    for name, data in (("a.nii", content), ("b.nii.gz", members), ("c.nii.gz", members + bytes(100))):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, _image())
        assert read_header(tmp_path / name).shape == SHAPE
    (tmp_path / "d.nii.gz").write_bytes(members + b"garbage")
    with pytest.raises(UserError, match="cut short or damaged"):
        read_volume(tmp_path / "d.nii.gz")


def test_each_kind_of_bad_file_gets_one_line(tmp_path: Path) -> None:
    for path, reason in _damage(tmp_path).values():
        for reader in (read_volume, read_label, lambda p: read_images([p])):
            with pytest.raises(UserError) as error:
                reader(path)
            message = str(error.value)
            assert message.startswith(f"{path}: ")
            assert reason in message
            assert "; " in message
            assert "\n" not in message


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:  # because root, who may run this test, can read any file
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    write_volume(tmp_path / "a.nii.gz", _image(), _affine())
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot be read"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    position=st.integers(0, 539),
    value=st.integers(0, 255),
    cut=st.none() | st.integers(0, 2000),
)
def test_a_damaged_header_is_read_or_refused_but_never_crashes(
    tmp_path: Path, kind: type[nib.Nifti1Image], position: int, value: int, cut: int | None
) -> None:
    content = bytearray(kind(_image(), _affine()).to_bytes())
    content[position] = value
    for name, pack in (("b.nii", bytes), ("b.nii.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(bytes(content))[:cut])
        try:
            volume = read_volume(tmp_path / name)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert volume.array.ndim == 3
            assert np.isfinite(volume.affine).all()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, _image(0), np.eye(4))
    before = path.read_bytes()

    def full(image: nib.Nifti1Image, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(UserError, match=r"a\.nii\.gz: the disk is full"):
        write_volume(path, _image(1), np.eye(4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_3d_arrays_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        write_volume(tmp_path / "a.nii.gz", np.zeros((1, 2, 3, 4), np.uint8), np.eye(4))
    assert list(tmp_path.iterdir()) == []


def test_real_volumes_against_simpleitk(medaug_data: Path) -> None:
    files = sorted((Path(medaug_data) / "Task04_Hippocampus").glob("*/*.nii.gz"))[::40]
    assert len(files) > 5
    for file in files:
        ours, itk = read_volume(file), sitk.ReadImage(str(file))
        np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(itk).transpose(2, 1, 0))
        np.testing.assert_allclose(ours.spacing, itk.GetSpacing(), atol=1e-6)
        corner = tuple(side - 1 for side in ours.array.shape)
        np.testing.assert_allclose((ours.affine @ [*corner, 1])[:3], _world(itk, corner), atol=1e-4)
