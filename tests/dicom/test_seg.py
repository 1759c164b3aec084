from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_files import axial, oblique, write_enhanced, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from seg_files import NAMES, refused_copies, write_seg

from medaug.dicom.seg import describe_seg, read_seg, read_seg_volume
from medaug.errors import UserError
from medaug.imaging.volume import Header

SHAPE = (9, 7, 6)


def grid_of(affine: Any, shape: Sequence[int] = SHAPE) -> Header:
    x, y, z = shape
    return Header((x, y, z), np.asarray(affine, float), np.dtype(np.int16))


def nested(shape: Sequence[int] = SHAPE) -> list[np.ndarray]:
    """Two masks that overlap; the first and last slices are empty, and nothing is symmetric."""
    whole = np.zeros(shape, bool)
    whole[1:6, 2:6, 1:5] = True
    whole[7, 1, 1] = True
    core = np.zeros(shape, bool)
    core[2:4, 3:5, 2:4] = True
    return [whole, core]


def labels(shape: Sequence[int] = SHAPE) -> list[np.ndarray]:
    whole, core = nested(shape)
    return [whole & ~core, core]


def reordered(order: Sequence[int]) -> Callable[[pydicom.Dataset], None]:
    """Reorder the frames of a whole-byte SEG together with their per-frame items."""

    def edit(dataset: pydicom.Dataset) -> None:
        frames = np.frombuffer(dataset.PixelData, np.uint8)[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns]
        frames = frames.reshape(dataset.NumberOfFrames, -1)[list(order)]
        dataset.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)
        items = list(dataset.PerFrameFunctionalGroupsSequence)
        dataset.PerFrameFunctionalGroupsSequence = [items[index] for index in order]

    return edit


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "image", np.zeros(SHAPE, np.int16), oblique())


def check(path: Path, grid: Header, expected: Sequence[np.ndarray]) -> None:
    segments = read_seg(path, grid)
    assert [segment.name for segment in segments] == list(NAMES)
    for segment, mask in zip(segments, expected, strict=True):
        np.testing.assert_array_equal(segment.mask, mask)


@pytest.mark.parametrize("omit", [True, False])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_overlapping_segments_are_read_exactly(tmp_path: Path, series: list[Path], kind: str, omit: bool) -> None:
    path = write_seg(tmp_path / "seg.dcm", series, nested(), kind, omit_empty_frames=omit)
    check(path, grid_of(oblique()), nested())


@pytest.mark.parametrize("omit", [True, False])
def test_a_label_map_is_read_exactly(tmp_path: Path, series: list[Path], omit: bool) -> None:
    path = write_seg(tmp_path / "seg.dcm", series, labels(), "LABELMAP", omit_empty_frames=omit)
    check(path, grid_of(oblique()), labels())


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", DeflatedExplicitVRLittleEndian),
        ("FRACTIONAL", RLELossless),
        ("FRACTIONAL", JPEGLSLossless),
        ("LABELMAP", RLELossless),
    ],
)
def test_compressed(tmp_path: Path, kind: str, syntax: str) -> None:
    shape = (40, 36, 6)  # GDCM aborts when it writes RLE with odd sides
    series = write_series(tmp_path / "image", np.zeros(shape, np.int16), oblique())
    plain = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    path = write_seg(tmp_path / "seg.dcm", series, labels(shape), kind, transfer_syntax_uid=plain)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    check(path, grid_of(oblique(), shape), labels(shape))


@pytest.mark.parametrize(
    ("kind", "command"),
    [("FRACTIONAL", ["dcmcrle"]), ("LABELMAP", ["dcmcrle"]), ("FRACTIONAL", ["gdcmconv", "--j2k"])],
)
def test_compressed_by_others(tmp_path: Path, tool: Callable[[str], str], command: Sequence[str], kind: str) -> None:
    shape = (40, 36, 6)  # JPEG 2000 needs 32 pixels a side
    series = write_series(tmp_path / "image", np.zeros(shape, np.int16), oblique())
    plain = write_seg(tmp_path / "seg.dcm", series, labels(shape), kind)
    subprocess.run([tool(command[0]), *command[1:], plain, tmp_path / "small.dcm"], check=True)
    assert pydicom.dcmread(tmp_path / "small.dcm").file_meta.TransferSyntaxUID.is_compressed
    check(tmp_path / "small.dcm", grid_of(oblique(), shape), labels(shape))


def test_frames_in_any_order(tmp_path: Path, series: list[Path]) -> None:
    count = len(pydicom.dcmread(write_seg(tmp_path / "a.dcm", series, nested(), "FRACTIONAL")).pixel_array)
    order = random.Random(3).sample(range(count), count)
    path = write_seg(tmp_path / "b.dcm", series, nested(), "FRACTIONAL", edit=reordered(order))
    check(path, grid_of(oblique()), nested())


def test_of_an_enhanced_multi_frame_image(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "image.dcm", np.zeros(SHAPE, np.int16), oblique())
    check(write_seg(tmp_path / "seg.dcm", [path], nested()), grid_of(oblique()), nested())


@pytest.mark.slow
@given(
    permutation=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    cut=st.tuples(*[st.integers(-2, 3)] * 3),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_grid_that_is_flipped_permuted_and_cropped(
    tmp_path_factory: pytest.TempPathFactory, permutation: list[int], flips: Sequence[bool], cut: Sequence[int]
) -> None:
    folder = tmp_path_factory.mktemp("seg")
    series = write_series(folder / "image", np.zeros(SHAPE, np.int16), oblique())
    path = write_seg(folder / "seg.dcm", series, nested())
    # The new grid's index i is the old index old(i) = base + sum of signed unit vectors; an oracle by plain look-up.
    shape = [SHAPE[axis] - cut[axis] for axis in permutation]
    to_old = np.eye(4)
    to_old[:3, :3] = np.eye(3)[:, permutation] * np.where(flips, -1, 1)
    for new, old in enumerate(permutation):
        to_old[old, 3] = SHAPE[old] - 1 if flips[new] else 0
    grid = grid_of(oblique() @ to_old, shape)
    voxels = np.indices(shape).reshape(3, -1)
    old = (to_old[:3, :3] @ voxels + to_old[:3, 3:]).astype(int)
    inside = ((old >= 0) & (old < np.array(SHAPE)[:, None])).all(axis=0)
    for segment, mask in zip(read_seg(path, grid), nested(), strict=True):
        expected = np.zeros(shape, bool)
        expected[tuple(voxels[:, inside])] = mask[tuple(old[:, inside])]
        drawn, notes = segment.draw()
        np.testing.assert_array_equal(drawn, expected)
        lost = mask.sum() - expected.sum()
        assert notes == ([f"{lost} voxels are outside the image and were left out"] if lost else [])


def test_highdicom_gives_the_same_positions(tmp_path: Path) -> None:
    # The SEG covers part of an image, with other axes; highdicom's own matching is the oracle.
    series = write_series(tmp_path / "image", np.zeros(SHAPE, np.int16), oblique())
    path = write_seg(tmp_path / "seg.dcm", series, labels())
    other = oblique() @ np.array([[0, -1, 0, 8], [0, 0, 1, -1], [-1, 0, 0, 5], [0, 0, 0, 1.0]])
    geometry = hd.VolumeGeometry(
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ other, (6, 10, 9), coordinate_system="PATIENT", frame_of_reference_uid=None
    )
    volume = hd.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    volume = hd.Volume(volume.array, volume.affine, "PATIENT")
    expected = volume.match_geometry(geometry).array
    whole, core = read_seg(path, grid_of(other, (6, 10, 9)))
    assert (expected == 1).sum() > 20
    np.testing.assert_array_equal(whole.mask, expected == 1)
    np.testing.assert_array_equal(core.mask, expected == 2)


def test_fractions_are_thresholded_at_half(tmp_path: Path, series: list[Path]) -> None:
    fraction = np.zeros(SHAPE)
    fraction[1:5, 2, 2] = 0.1, 0.49, 0.5, 1.0
    path = write_seg(tmp_path / "seg.dcm", series, [fraction], "FRACTIONAL", names=["a"], max_fractional_value=200)
    mask, notes = read_seg(path, grid_of(oblique()))[0].draw()
    np.testing.assert_array_equal(mask, fraction >= 0.5)
    assert notes == ["fractional; the mask is values from half of the maximum (100 of 200)"]


def nudged(millimetres: float) -> Any:
    moved = oblique()
    moved[0, 3] += millimetres
    return moved


def test_half_a_percent_of_a_voxel_is_ignored(tmp_path: Path, series: list[Path]) -> None:
    check(write_seg(tmp_path / "seg.dcm", series, nested()), grid_of(nudged(0.005)), nested())


@pytest.mark.parametrize(
    ("affine", "what"),
    [
        (nudged(0.3), "up to 0.3 mm away"),
        (oblique(spacing=(1.25, 1, 3)), "measure 1x1 mm, the image's voxels 1.25x1x3 mm"),
        (oblique(spacing=(2, 2, 3)), "measure 1x1 mm"),
        (oblique(spacing=(1, 1, 2)), "away from the image's voxels"),
        (oblique(angles=(0.2, -0.3, 0.5)), "away from the image's voxels"),
        (axial(), "away from the image's voxels"),
    ],
)
def test_segments_between_voxels_are_refused(tmp_path: Path, series: list[Path], affine: Any, what: str) -> None:
    path = write_seg(tmp_path / "seg.dcm", series, nested())
    with pytest.raises(UserError, match=f"^segmentation: .*{what}.*; choose the series"):
        read_seg(path, grid_of(affine))


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_own_grid(tmp_path: Path, series: list[Path], kind: str) -> None:
    path = write_seg(tmp_path / "seg.dcm", series[::-1], [mask[:, :, ::-1] for mask in labels()], kind)
    volume = read_seg_volume(path)
    expected = (labels()[0] + 2 * labels()[1])[:, :, 1:5]  # empty frames at either end are not in the file
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.array.dtype == volume.dtype == np.uint8
    first = oblique()
    first[:3, 3] = (oblique() @ [0, 0, 1, 1])[:3]
    np.testing.assert_allclose(volume.affine, first, atol=1e-4)


def test_own_grid_has_the_empty_slices_between(tmp_path: Path, series: list[Path]) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 3, [0, 3]] = True
    path = write_seg(tmp_path / "seg.dcm", series, [mask], names=["a"])
    assert pydicom.dcmread(path).NumberOfFrames == 2
    np.testing.assert_array_equal(read_seg_volume(path).array, mask[:, :, :4])


@pytest.mark.parametrize(
    "message", [{"SpacingBetweenSlices": 1.25}, {"SpacingBetweenSlices": None, "SliceThickness": 1.5}]
)
def test_own_grid_depends_on_positions_not_on_thickness(
    tmp_path: Path, series: list[Path], message: dict[str, float | None]
) -> None:
    def edit(dataset: pydicom.Dataset) -> None:
        broken(**message)(measures(dataset))

    volume = read_seg_volume(write_seg(tmp_path / "seg.dcm", series, labels(), edit=edit))
    assert volume.spacing == pytest.approx((1, 1, 3), abs=1e-3)
    assert volume.array.shape == (9, 7, 4)


def test_own_grid_of_one_slice_uses_its_thickness(tmp_path: Path, series: list[Path]) -> None:
    def edit(dataset: pydicom.Dataset) -> None:
        measures(dataset).SpacingBetweenSlices = 1.25

    mask = nested()[0][:, :, 2:3]
    volume = read_seg_volume(write_seg(tmp_path / "seg.dcm", series[2:3], [mask], names=["a"], edit=edit))
    assert volume.array.shape == (9, 7, 1) and volume.spacing[2] == pytest.approx(1.25)


def test_own_grid_of_overlapping_segments_is_refused(tmp_path: Path, series: list[Path]) -> None:
    with pytest.raises(UserError, match="its segments overlap"):
        read_seg_volume(write_seg(tmp_path / "seg.dcm", series, nested()))


def test_description(tmp_path: Path, series: list[Path]) -> None:
    described = describe_seg(write_seg(tmp_path / "seg.dcm", series, nested(), omit_empty_frames=False))
    images = [pydicom.dcmread(file) for file in series]
    assert described.names == NAMES
    assert described.series_uids == {images[0].SeriesInstanceUID}
    assert described.frame_of_reference == images[0].FrameOfReferenceUID
    assert described.sop_instance_uids == {image.SOPInstanceUID for image in images}


def test_a_segment_without_a_name_and_one_over_two_lines(tmp_path: Path, series: list[Path]) -> None:
    def edit(dataset: pydicom.Dataset) -> None:
        del dataset.SegmentSequence[0].SegmentLabel
        dataset.SegmentSequence[1].SegmentLabel = "two\nlines "

    described = describe_seg(write_seg(tmp_path / "seg.dcm", series, nested(), edit=edit))
    assert described.names == ("segment 1", "two lines")


def broken(**changes: Any) -> Callable[[pydicom.Dataset], None]:
    def edit(dataset: pydicom.Dataset) -> None:
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


def moved(*position: float) -> Callable[[pydicom.Dataset], None]:
    def edit(dataset: pydicom.Dataset) -> None:
        dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = list(position)

    return edit


def measures(dataset: pydicom.Dataset) -> pydicom.Dataset:
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


@pytest.mark.parametrize(
    "edit",
    [
        broken(PerFrameFunctionalGroupsSequence=None),
        broken(SharedFunctionalGroupsSequence=None),
        broken(SegmentSequence=None),
        broken(PixelData=None),
        broken(PixelData=b"\0\0"),
        broken(NumberOfFrames=3),
        broken(Rows=60000, Columns=60000),
        broken(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"),
        lambda dataset: dataset.SegmentSequence.pop(),
        lambda dataset: setattr(
            dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0], "ImagePositionPatient", [1, 2]
        ),
        lambda dataset: setattr(
            dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [0, 0]
        ),
        lambda dataset: setattr(
            dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0],
            "ImagePositionPatient",
            [1e9, 1e9, 1e9],
        ),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path, series: list[Path], edit: Callable[[pydicom.Dataset], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_seg(tmp_path / "Nobody.dcm", series, labels(), edit=edit)
    for read in (lambda: [s.mask for s in read_seg(path, grid_of(oblique()))], lambda: read_seg_volume(path)):
        with pytest.raises(UserError, match="^segmentation: [^\n]*; [^\n]*$") as caught:
            read()
        assert "Nobody" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_damaged_files_only_raise_user_errors(tmp_path: Path, series: list[Path], kind: str) -> None:
    path = write_seg(tmp_path / "seg.dcm", series, labels(), kind)

    def read(path: Path) -> None:
        describe_seg(path)
        for segment in read_seg(path, grid_of(oblique())):
            segment.draw()
        read_seg_volume(path)

    assert refused_copies(path, 120, read, "segmentation: ") > 60  # every truncation at least


@pytest.mark.slow
def test_the_real_oblique_series(tmp_path: Path, medaug_data: Path) -> None:
    files = sorted((medaug_data / "dicom" / "PGBM-002" / "12-T1post-05670").glob("*.dcm"))
    images = [pydicom.dcmread(file) for file in files]
    for image, file in zip(images, files, strict=True):
        image.setdefault("PatientBirthDate", "")  # highdicom needs it
        image.save_as(tmp_path / file.name)
    cosines = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(*cosines)
    order = np.argsort([normal @ np.array(image.ImagePositionPatient, float) for image in images])
    positions = np.array([images[index].ImagePositionPatient for index in order], float)
    spacing = images[0].PixelSpacing
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [cosines[0] * spacing[1], cosines[1] * spacing[0], (positions[-1] - positions[0]) / 21, positions[0]]
    )
    grid = grid_of(np.diag([-1, -1, 1, 1]) @ affine, (512, 512, 22))
    random_masks = np.random.default_rng(0).random((2, 64, 48, 22)) < 0.3
    masks = [np.zeros(grid.shape, bool) for _ in random_masks]
    for mask, values in zip(masks, random_masks, strict=True):
        mask[100:164, 300:348] = values
        mask[:, :, 5:9] = False
    path = write_seg(tmp_path / "seg.dcm", [tmp_path / files[index].name for index in order], masks)
    check(path, grid, masks)
