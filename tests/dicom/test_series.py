"""Geometry of DICOM series against closed forms, SimpleITK and dcm2niix, and the codes of refused series."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import LPS, axial, oblique, ramp, uid, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug.dicom.headers import Series, scan_in_process
from medaug.dicom.series import read_folder, read_series, series_header, series_problems
from medaug.errors import UserError


def only(folder: Path) -> Series:
    (series,) = scan_in_process(folder).series
    return series


def codes(folder: Path) -> list[str]:
    return [problem.code for problem in series_problems(only(folder))]


def refused(folder: Path, code: str, *words: str) -> None:
    """Check that headers give only this code, and that reading raises one line with these words and no path."""
    series = only(folder)
    assert codes(folder) == [code]
    with pytest.raises(UserError) as caught:
        read_series(series)
    text = str(caught.value)
    assert text.startswith("series 1: ") and "; " in text and "\n" not in text and str(folder) not in text
    for word in words:
        assert word in text


def orientation(columns: str, spacing: tuple[float, float, float] = (0.5, 0.75, 2.0)) -> np.ndarray:
    """An affine whose axes point in these directions, such as "LPS" (axial) or "PIR" (sagittal)."""
    affine = np.eye(4)
    for axis, side in enumerate(columns):
        row = next(index for index, pair in enumerate(("RL", "AP", "SI")) if side in pair)
        affine[:3, axis] = 0
        affine[row, axis] = spacing[axis] * (1 if side in "RAS" else -1)
    affine[:3, 3] = (11.0, -7.0, 3.5)
    return affine


# Slices along cross(rows, columns): DICOM's own right-handed cases, as scanners write them.
@pytest.mark.parametrize("sides", ["LPS", "PIR", "LIP", "AIL", "RPI", "IPL", "SLP"])
def test_closed_form_of_plain_orientations(tmp_path, sides):
    affine = orientation(sides)
    assert np.linalg.det(LPS[:3, :3] @ affine[:3, :3]) > 0
    write_series(tmp_path, ramp(), affine)
    volume = read_folder(tmp_path)
    np.testing.assert_array_equal(volume.array, ramp())
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)
    assert "".join(nib.aff2axcodes(volume.affine)) == sides
    assert volume.array.dtype == np.int16


def test_a_reversed_series_is_read_in_ascending_order(tmp_path):
    affine = axial((1, 1, 3)) @ np.diag([1, 1, -1, 1.0])
    write_series(tmp_path, ramp(), affine)
    volume = read_folder(tmp_path)
    np.testing.assert_array_equal(volume.array, ramp()[:, :, ::-1])
    flip = np.eye(4)
    flip[2, 2], flip[2, 3] = -1, 3
    np.testing.assert_allclose(volume.affine, affine @ flip, atol=1e-9)


def test_spacing_comes_from_positions_alone(tmp_path):
    write_series(tmp_path, ramp(), axial((0.4, 0.9, 6.5)), SliceThickness="5", SpacingBetweenSlices="1")
    assert read_folder(tmp_path).spacing == pytest.approx((0.4, 0.9, 6.5))


@pytest.mark.slow
@settings(max_examples=25)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 9.0)] * 3),
    marker=st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 3)),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_marker_keeps_its_world_position(tmp_path_factory, angles, spacing, marker, shuffle):
    folder = tmp_path_factory.mktemp("series")
    affine = oblique(spacing, angles)
    array = np.zeros((6, 5, 4), np.int16)
    array[marker] = 700
    order = list(range(4))
    shuffle.shuffle(order)
    write_series(
        folder,
        array,
        affine,
        names=lambda index: f"{order[index]}",
        edit=lambda index, dataset: setattr(dataset, "InstanceNumber", order[-1 - index]),
    )
    volume = read_folder(folder)
    (found,) = np.argwhere(volume.array == 700)
    np.testing.assert_allclose(volume.affine @ [*found, 1], affine @ [*marker, 1], atol=1e-4 * max(spacing) + 1e-6)
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-6)


def test_names_folders_and_instance_numbers_change_nothing(tmp_path):
    affine = oblique((0.8, 0.7, 2.5))
    write_series(tmp_path / "a", ramp((7, 6, 9)), affine)
    order = list(range(9))
    random.Random(3).shuffle(order)
    write_series(
        tmp_path / "b",
        ramp((7, 6, 9)),
        affine,
        names=lambda index: f"{order[index] % 3}/IM{order[index]}",
        edit=lambda index, dataset: setattr(dataset, "InstanceNumber", 50 - order[index]),
    )
    a, b = read_folder(tmp_path / "a"), read_folder(tmp_path / "b")
    np.testing.assert_array_equal(a.array, b.array)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert a.array.dtype == b.array.dtype


@pytest.mark.parametrize("affine", [axial((0.5, 0.75, 2)), oblique()], ids=["axial", "oblique"])
def test_agrees_with_simpleitk(tmp_path, affine):
    write_series(tmp_path, ramp(), affine, modality="CT", slope=2, intercept=-1024)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = read_folder(tmp_path)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    for index in itertools.product((0, 5), (0, 4), (0, 3)):
        point = LPS @ [*image.TransformIndexToPhysicalPoint(index), 1]
        np.testing.assert_allclose(volume.affine @ [*index, 1], point, atol=1e-5)


def test_the_header_agrees_with_the_volume(tmp_path):
    write_series(tmp_path, ramp(), oblique(), slope=0.5, intercept=3)
    header, volume = series_header(only(tmp_path)), read_folder(tmp_path)
    assert (header.shape, header.dtype) == (volume.array.shape, volume.array.dtype)
    np.testing.assert_array_equal(header.affine, volume.affine)


def test_two_series_in_one_folder_are_two(tmp_path):
    write_series(tmp_path, ramp(), number=1, names="a{}".format)
    write_series(tmp_path, ramp() + 500, number=2, names="b{}".format, edit=lambda i, d: setattr(d, "StudyID", "9"))
    first, second = scan_in_process(tmp_path).series
    np.testing.assert_array_equal(read_series(first).array, ramp())
    np.testing.assert_array_equal(read_series(second).array, ramp() + 500)
    with pytest.raises(UserError, match=r"holds 2 image series \(series 1, series 2\)"):
        read_folder(tmp_path)


# Refused by name


def test_missing_slice_is_refused_or_interpolated(tmp_path):
    array = np.random.default_rng(0).integers(-900, 900, (6, 5, 8)).astype(np.int16)
    for path in [path for index, path in enumerate(write_series(tmp_path, array, oblique())) if index in {2, 5, 6}]:
        path.unlink()
    refused(tmp_path, "gap", "lacks 3 slices", "1 after slice 2 (6 mm", "2 after slice 4 (9 mm", "3 mm elsewhere")
    volume = read_series(only(tmp_path), "resample")
    expected = array.copy()
    expected[:, :, 2] = np.rint((array[:, :, 1] + array[:, :, 3].astype(float)) / 2)
    for index, weight in ((5, 1 / 3), (6, 2 / 3)):
        expected[:, :, index] = np.rint((1 - weight) * array[:, :, 4] + weight * array[:, :, 7])
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-6)
    assert series_header(only(tmp_path)).shape == (6, 5, 8)


def test_gap_of_two_thirds_of_three_slices(tmp_path):
    write_series(tmp_path, ramp((6, 5, 3)), positions=[[0, 0, z] for z in (0, 2, 6)])
    refused(tmp_path, "gap", "lacks 1 slice: 1 after slice 2 (4 mm to the next, 2 mm elsewhere)")


def test_uneven_slices(tmp_path):
    write_series(tmp_path, ramp((6, 5, 5)), positions=[[0, 0, z] for z in (0, 3, 6, 10.4, 13.4)])
    refused(tmp_path, "uneven-spacing", "3 to 4.4 mm apart")


def test_a_far_away_slice_is_not_a_gap(tmp_path):
    write_series(tmp_path, ramp((6, 5, 5)), positions=[[0, 0, z] for z in (0, 3, 6, 9, 3e6)])
    refused(tmp_path, "uneven-spacing")


@pytest.mark.parametrize("step", [6.500003, 0.625, 0.3333333])
def test_rounded_positions_are_even(tmp_path, step):
    digits = 1 if step > 0.5 else 2
    write_series(tmp_path, ramp((6, 5, 20)), positions=[[0, 0, round(step * i, digits)] for i in range(20)])
    assert read_folder(tmp_path).spacing[2] == pytest.approx(step, abs=0.01)


def test_gantry_tilt(tmp_path):
    shift = np.tan(np.radians(12)) * 3
    write_series(tmp_path, ramp(), positions=[[0, shift * z, 3 * z] for z in range(4)], modality="CT")
    refused(tmp_path, "gantry-tilt", "12 degrees")


def test_one_shifted_slice(tmp_path):
    write_series(tmp_path, ramp(), positions=[[0, 4.0 * (z == 2), 3 * z] for z in range(4)])
    refused(tmp_path, "shifted-slices", "shifted sideways")


def test_exact_copies_are_read_once(tmp_path):
    paths = write_series(tmp_path, ramp())
    for name in ("copy.dcm", "other/0.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(paths[1].read_bytes())
    np.testing.assert_array_equal(read_folder(tmp_path).array, ramp())
    (one,) = [one for one in only(tmp_path).instances if one.copies]
    assert set(one.paths) == {paths[1], tmp_path / "copy.dcm", tmp_path / "other" / "0.dcm"}


def test_copies_that_were_saved_again_are_duplicates(tmp_path):
    dataset = pydicom.dcmread(write_series(tmp_path, ramp())[1])
    dataset.SeriesDescription = "another"
    dataset.save_as(tmp_path / "copy.dcm")
    refused(tmp_path, "duplicate-slices", "the same image twice 1 times")


@pytest.mark.parametrize("jitter", [0, 1e-5])
def test_slices_at_one_position_are_not_a_volume(tmp_path, jitter):
    write_series(tmp_path, ramp(), positions=[[0, 0, 7 + jitter * index] for index in range(4)])
    refused(tmp_path, "duplicate-slices", "4 acquisitions in one series (their pixels differ)")


def rename(number: int):
    """Give instances new UIDs and keep the UIDs of the series."""

    def edit(index, dataset):
        dataset.SOPInstanceUID = uid("other", number, index)

    return edit


def test_same_pixels_under_another_uid_are_duplicates(tmp_path):
    write_series(tmp_path / "a", ramp())
    write_series(tmp_path / "b", ramp(), edit=rename(2))
    refused(tmp_path, "duplicate-slices", "several slices at one position, at 4 of 4 positions")


def test_different_pixels_at_one_position_are_two_acquisitions(tmp_path):
    write_series(tmp_path / "a", ramp())
    write_series(tmp_path / "b", ramp() + 1, edit=rename(2))
    refused(tmp_path, "duplicate-slices", "2 acquisitions in one series (their pixels differ)")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("AcquisitionNumber", 2),
        ("EchoTime", "80"),
        ("TemporalPositionIdentifier", 2),
        ("DiffusionBValue", 1000.0),
        ("ImageType", ["ORIGINAL", "PRIMARY", "PHASE"]),
    ],
)
def test_the_difference_of_two_acquisitions_is_reported(tmp_path, keyword, value):
    write_series(tmp_path / "a", ramp())
    write_series(tmp_path / "b", ramp(), edit=rename(2), **{keyword: value})
    if keyword in {"TemporalPositionIdentifier", "DiffusionBValue"}:
        for path in (tmp_path / "a").iterdir():
            dataset = pydicom.dcmread(path)
            setattr(dataset, keyword, 1)
            dataset.save_as(path)
    refused(tmp_path, "two-acquisitions", "2 acquisitions", f"{keyword} differs")


def of_first(**tags):
    def edit(index, dataset):
        if index == 0:
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("code", "edit"),
    [
        ("mixed-orientation", of_first(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])),
        ("mixed-spacing", of_first(PixelSpacing=[1, 1.1])),
        ("mixed-shape", of_first(Rows=3)),
        ("mixed-units", of_first(RescaleSlope=1, RescaleIntercept=-1024)),
        ("bad-rescale", of_first(RescaleSlope=0, RescaleIntercept=0)),
        ("bad-orientation", of_first(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0])),
        ("no-geometry", of_first(ImagePositionPatient=None)),
        ("no-geometry", of_first(ImageOrientationPatient=None)),
        ("no-geometry", of_first(PixelSpacing=None)),
        ("no-geometry", of_first(PixelSpacing=[0, 0])),
        ("no-geometry", of_first(NumberOfFrames=3)),
        ("colour", of_first(PhotometricInterpretation="PALETTE COLOR")),
        ("colour", of_first(SamplesPerPixel=3, PhotometricInterpretation="RGB")),
        ("absurd-size", of_first(Rows=40000)),
        ("mixed-objects", of_first(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
        ("not-an-image", of_first(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")),
    ],
)
def test_each_problem_has_its_code(tmp_path, code, edit):
    write_series(tmp_path, ramp(), edit=edit)
    refused(tmp_path, code)


def test_mixed_units(tmp_path):
    units = itertools.cycle(["HU", "US"])
    write_series(tmp_path, ramp(), slope=2, edit=lambda i, d: setattr(d, "RescaleType", next(units)))
    refused(tmp_path, "mixed-units", "2 units")


def test_single_slice(tmp_path):
    write_series(tmp_path, ramp((6, 5, 1)))
    refused(tmp_path, "single-slice")


def test_no_images_at_all(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_folder(tmp_path / "nowhere")


def test_unreadable_file_in_a_folder_refuses_it(tmp_path):
    paths = write_series(tmp_path, ramp())
    paths[-1].write_bytes(b"")
    with pytest.raises(UserError, match="zero bytes"):
        read_folder(tmp_path)


@pytest.mark.slow
def test_damaged_series_give_a_volume_or_one_line(tmp_path, recwarn):
    """Bits flipped in the header of one slice of a series, or of a multi-frame file, 120 times."""
    draw = random.Random("series")
    for path in (
        write_series(tmp_path / "a", ramp((5, 4, 5)))[2],
        write_enhanced(tmp_path / "b" / "e", ramp((5, 4, 5))),
    ):
        whole = path.read_bytes()
        outcomes = set()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(draw.choice([1, 2, 8])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(data))
            for series in scan_in_process(path.parent).series:
                for problem in series_problems(series):
                    assert "\n" not in problem.what + problem.remedy
            try:
                read_folder(path.parent)
                outcomes.add("read")
            except UserError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
        assert outcomes == {"read", "refused"}
    assert not recwarn.list


# Enhanced multi-frame


def test_enhanced_frames_in_any_order(tmp_path):
    order = [2, 0, 3, 1]
    path = write_enhanced(tmp_path / "enhanced", ramp(), oblique(), order=order, slope=2, intercept=-7)
    volume = read_folder(path)
    np.testing.assert_array_equal(volume.array, ramp().astype(int) * 2 - 7)
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-6)
    image = sitk.ReadImage(str(write_enhanced(tmp_path / "plain", ramp(), oblique(), number=2)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), ramp())


def test_enhanced_values_per_frame(tmp_path):
    path = write_enhanced(tmp_path / "e.dcm", ramp(), slope=[1, 2, 3, 4.5], intercept=[0, 1, 2, 3], order=[3, 2, 1, 0])
    volume = read_folder(path)
    np.testing.assert_array_equal(volume.array, ramp() * np.array([1, 2, 3, 4.5]) + [0, 1, 2, 3])
    assert volume.array.dtype == np.float32


def test_enhanced_with_two_times_is_refused(tmp_path):
    write_enhanced(tmp_path / "e.dcm", ramp((6, 5, 4, 2)))
    refused(tmp_path, "two-acquisitions", "2 acquisitions", "TemporalPositionIndex differs")


def test_enhanced_with_a_missing_frame(tmp_path):
    write_enhanced(tmp_path / "e.dcm", ramp((6, 5, 6)), order=[0, 1, 3, 4, 5])
    refused(tmp_path, "gap", "1 after slice 2")


def test_enhanced_with_a_wrong_number_of_frames(tmp_path):
    write_enhanced(tmp_path / "e.dcm", ramp(), edit=lambda dataset: setattr(dataset, "NumberOfFrames", 3))
    refused(tmp_path, "frame-count")
