from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import axial, oblique, uid, write_series
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage
from seg_files import Contours, refused_copies, write_rtstruct

from medaug.dicom.rtstruct import describe_rtstruct, read_rtstruct
from medaug.errors import UserError
from medaug.imaging.volume import Header, spacing


def grid_of(affine: Any, shape: Sequence[int]) -> Header:
    x, y, z = shape
    return Header((x, y, z), np.asarray(affine, float), np.dtype(np.int16))


def circle(radius: float, centre: Sequence[float] = (0, 0), points: int = 400) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([np.cos(angle), np.sin(angle)]) * radius + centre


def at_height(points: np.ndarray, height: float) -> np.ndarray:
    return np.column_stack([points, np.full(len(points), height)])


def placed(contours: Contours, affine: np.ndarray) -> list[np.ndarray]:
    """Contours in voxel indices to RAS mm."""
    return [points @ affine[:3, :3].T + affine[:3, 3] for points in contours]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


SHAPE = (60, 56, 20)


def analytic(name: str) -> tuple[list[np.ndarray], float]:
    """Contours in voxel indices of `oblique((1, 1.25, 2))`, 2.5 mm3 a voxel, and the mm3 of their slabs."""
    scale = np.array([1, 1.25])
    centre = np.array([30.2, 34.7])  # mm in the plane
    rings: list[np.ndarray] = []
    volume = 0.0
    if name == "sphere":
        for k in range(SHAPE[2]):
            if (square := 15**2 - (2 * (k - 9.6)) ** 2) > 0:
                rings.append(at_height(circle(square**0.5, centre) / scale, k))
                volume += 2 * np.pi * square
        assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.01)
        return rings, volume
    if name == "torus":
        for k in range(SHAPE[2]):
            if (square := 7**2 - (2 * (k - 9.6)) ** 2) > 0:
                rings += [at_height(circle(17 + sign * square**0.5, centre) / scale, k) for sign in (-1, 1)]
                volume += 2 * 4 * np.pi * 17 * square**0.5  # of an annulus, by Pappus
        assert volume == pytest.approx(2 * np.pi**2 * 17 * 7**2, rel=0.02)
        return rings, volume
    turn = np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    box = np.array([(-15, -10), (15, -10), (15, 10), (-15, 10)]) @ turn + centre
    return [at_height(box / scale, k) for k in range(4, 16)], 30 * 20 * 24


@pytest.mark.parametrize("name", ["sphere", "torus", "box"])
def test_volume_of_analytic_bodies_in_oblique_slices(tmp_path: Path, name: str) -> None:
    affine = oblique((1, 1.25, 2))
    contours, expected = analytic(name)
    path = write_rtstruct(tmp_path / "rt.dcm", {name: placed(contours, affine)})
    mask, notes = read_rtstruct(path, grid_of(affine, SHAPE))[0].draw()
    assert notes == []
    assert mask.sum() * 2.5 == pytest.approx(expected, rel=0.005)
    if name == "torus":
        assert not mask[30, 28, 10]  # the hole


@pytest.mark.parametrize(
    ("permutation", "flips"), [((0, 1, 2), (1, -1, -1)), ((2, 0, 1), (1, 1, -1)), ((1, 2, 0), (-1, 1, 1))]
)
def test_the_origin_of_the_grid_does_not_matter(tmp_path: Path, permutation: list[int], flips: list[int]) -> None:
    affine = oblique((1, 1.25, 2))
    path = write_rtstruct(tmp_path / "rt.dcm", {"a": placed(analytic("torus")[0], affine)})
    mask = read_rtstruct(path, grid_of(affine, SHAPE))[0].mask
    to_old = np.eye(4)
    to_old[:3, :3] = np.eye(3)[:, permutation] * flips
    to_old[:3, 3] = [SHAPE[old] - 1 if (to_old[old] < 0).any() else 0 for old in range(3)]
    expected = np.flip(mask.transpose(permutation), [axis for axis in range(3) if flips[axis] < 0])
    turned = read_rtstruct(path, grid_of(affine @ to_old, expected.shape))[0].mask
    np.testing.assert_array_equal(turned, expected)


def test_several_contours_names_and_description(tmp_path: Path) -> None:
    affine = axial()
    two = placed([at_height(circle(3, centre), 2) for centre in ((8, 8), (20, 8))], affine)
    path = write_rtstruct(tmp_path / "rt.dcm", {"both": two, "left\n": two[:1], "": []})
    grid = grid_of(affine, (30, 20, 5))
    both, left, empty = read_rtstruct(path, grid)
    assert [both.name, left.name, empty.name] == ["both", "left", "ROI 13"]
    assert both.mask.sum() == 2 * left.mask.sum() == 2 * 29
    assert both.mask[20, 8, 2] and not left.mask[20, 8, 2]
    assert not empty.mask.any() and empty.draw()[1] == ["has no closed contour"]
    described = describe_rtstruct(path)
    assert described.names == ("both", "left", "ROI 13")
    assert described.series_uids == {uid("series")}
    assert described.frame_of_reference == uid("frame")
    assert described.sop_instance_uids == {uid("image")}


def draw_discs(tmp_path: Path, heights: Sequence[float], **options: Any) -> tuple[list[int], list[str]]:
    """Slices of a 30x20x12 grid with 3 mm steps that discs at these heights (in steps) fill, and the notes."""
    rings = placed([at_height(circle(5, (10, 10)), height) for height in heights], axial())
    path = write_rtstruct(tmp_path / "rt.dcm", {"disc": rings}, **options)
    mask, notes = read_rtstruct(path, grid_of(axial(), (30, 20, 12)))[0].draw()
    assert all(mask[:, :, k].sum() in (0, 81) for k in range(12))
    return np.flatnonzero(mask.any(axis=(0, 1))).tolist(), notes


@pytest.mark.parametrize(
    ("heights", "slices", "notes"),
    [
        ([3, 4, 5], [3, 4, 5], []),
        ([3, 3, 4], [3, 4], ["1 contours occur twice"]),
        ([3.2, 4.2], [3, 4], ["contours are up to 0.6 mm away from their slices"]),
        ([3, 3.33, 3.67, 4, 4.33], [3, 4], []),  # contours finer than the slices
        ([-2, 0, 1, 14], [0, 1], ["2 contours lie outside the image and were left out"]),
        ([20], [], ["1 contours lie outside the image and were left out"]),
        ([2, 7], [2, 7], []),
        ([11.5], [], None),
    ],
)
def test_slices(tmp_path: Path, heights: Sequence[float], slices: list[int], notes: list[str] | None) -> None:
    if notes is None:
        with pytest.raises(UserError, match="between slices"):
            draw_discs(tmp_path, heights)
    else:
        assert draw_discs(tmp_path, heights) == (slices, notes)


@pytest.mark.parametrize(
    ("heights", "what"),
    [([2.5, 3.5, 4.5], r"between slices \(1.5 mm away\)"), ([2, 4, 6], "are 6 mm apart, but slices 3 mm")],
)
def test_another_series_slices_are_refused(tmp_path: Path, heights: Sequence[float], what: str) -> None:
    with pytest.raises(UserError, match=f'^structure set: ROI "disc": contours .*{what}.*; choose the series'):
        draw_discs(tmp_path, heights)


def test_another_orientation_is_refused(tmp_path: Path) -> None:
    rings = placed([at_height(circle(8, (10, 10)), 3)], oblique())
    path = write_rtstruct(tmp_path / "rt.dcm", {"a": rings})
    with pytest.raises(UserError, match="is tilted out of its slice by"):
        read_rtstruct(path, grid_of(axial(), (30, 20, 12)))[0].draw()


def test_sagittal_contours_of_an_axial_image(tmp_path: Path) -> None:
    rings = placed([at_height(circle(4, (10, 6)), k)[:, [2, 0, 1]] for k in range(5, 9)], axial())
    path = write_rtstruct(tmp_path / "rt.dcm", {"a": rings})
    mask = read_rtstruct(path, grid_of(axial(), (30, 20, 12)))[0].mask
    assert mask.sum() == 4 * 49 and mask[5:9].sum() == mask.sum()


def test_points_are_left_out(tmp_path: Path) -> None:
    slices, notes = draw_discs(tmp_path, [1, 2, 3], kind=lambda _, index: "POINT" if index else "CLOSED_PLANAR")
    assert (slices, notes) == ([1], ["2 points were left out"])
    slices, notes = draw_discs(tmp_path, [1], kind="POINT")
    assert slices == [] and notes[-1] == "has no closed contour"


@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_open_contours_are_closed_only_if_their_ends_meet(tmp_path: Path, kind: str) -> None:
    affine, shape = axial((0.5, 2, 3)), (20, 20, 4)
    # A box around voxels 5..9 x 4..8, drawn from its corner all around: the ends are half a voxel apart.
    corners = np.array([(4.5, 3.5), (9.5, 3.5), (9.5, 8.5), (4.5, 8.5), (4.5, 4.0)])
    box = np.zeros(shape, bool)
    box[5:10, 4:9, 1:4] = True

    def draw(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
        stacks = [at_height(points, height) for height in (1, 2, 3)]
        contours = placed(stacks, affine)
        types = {0: "CLOSED_PLANAR", 1: kind, 2: "CLOSED_PLANAR"}
        path = write_rtstruct(tmp_path / "rt.dcm", {"GTV": contours}, kind=lambda _, index: types[index])
        (roi,) = read_rtstruct(path, grid_of(affine, shape))
        return roi.draw()

    mask, notes = draw(corners)
    np.testing.assert_array_equal(mask, box)
    assert notes == ["1 open contours were read as closed, because their ends meet"]
    # Without the last point, the ends are 5 voxels of 2 mm apart.
    with pytest.raises(UserError, match='ROI "GTV": 1 of 3 contours are open, with ends up to 10 mm apart'):
        draw(corners[:-1])


@pytest.mark.filterwarnings("ignore:The value length")
def test_interpolated_contours_are_closed_ones(tmp_path: Path) -> None:
    kinds = {0: "CLOSED_PLANAR", 1: "INTERPOLATED_PLANAR", 2: "CLOSED_PLANAR"}
    assert draw_discs(tmp_path, [1, 2, 3], kind=lambda _, index: kinds[index]) == ([1, 2, 3], [])


def test_an_roi_in_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    def edit(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = uid("other")

    with pytest.raises(UserError, match="another frame of reference"):
        draw_discs(tmp_path, [1], edit=edit)


def set_data(value: Any) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset.ROIContourSequence[0].ContourSequence[0], "ContourData", value)


@pytest.mark.parametrize(
    "edit",
    [
        set_data(["1", "2", "3", "4"]),
        set_data(["nan", "2", "3"]),
        set_data([]),
        lambda dataset: delattr(dataset, "StructureSetROISequence"),
        lambda dataset: delattr(dataset.ROIContourSequence[0].ContourSequence[0], "ContourData"),
        lambda dataset: setattr(dataset, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of pydicom, as it writes such values
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, edit: Callable[[Dataset], None]) -> None:
    with pytest.raises(UserError, match="^structure set: [^\n]*; [^\n]*$"):
        draw_discs(tmp_path, [1, 2], edit=edit)


@pytest.mark.slow
def test_damaged_files_only_raise_user_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rings = placed([at_height(circle(8, (10, 10), 40), k) for k in range(3)], axial())
    path = write_rtstruct(tmp_path / "rt.dcm", {"a": rings, "b": rings[:2]})

    def read(path: Path) -> None:
        describe_rtstruct(path)
        for roi in read_rtstruct(path, grid_of(axial(), (30, 20, 12))):
            roi.draw()

    assert refused_copies(path, 200, read, "structure set: ") > 100
    assert capsys.readouterr() == ("", "")


# plastimatch


def test_plastimatch_on_oblique_slices(tmp_path: Path, tool: Callable[[str], str]) -> None:
    affine = oblique((1, 1.25, 2))
    write_series(tmp_path / "image", np.zeros(SHAPE, np.int16), affine)
    check_plastimatch(tmp_path, tool("plastimatch"), tmp_path / "image", grid_of(affine, SHAPE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["12-T1post-05670", "36459-FLAIRreg-76244"])
def test_plastimatch_on_the_real_series(
    tmp_path: Path, tool: Callable[[str], str], medaug_data: Path, name: str
) -> None:
    folder = medaug_data / "dicom" / "PGBM-002" / name
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.glob("*.dcm")]
    cosines = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
    positions = np.array([image.ImagePositionPatient for image in images], float)
    positions = positions[np.argsort(positions @ np.cross(*cosines))]
    rows, columns = map(float, images[0].PixelSpacing)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([cosines[0] * columns, cosines[1] * rows, step, positions[0]])
    grid = grid_of(np.diag([-1, -1, 1, 1]) @ affine, (images[0].Columns, images[0].Rows, len(images)))
    check_plastimatch(tmp_path, tool("plastimatch"), folder, grid)


def check_plastimatch(tmp_path: Path, plastimatch: str, series: Path, grid: Header) -> None:
    """A hollow sphere, converted to RTSTRUCT and back by plastimatch; medaug must agree with both."""
    sides = np.array(spacing(grid.affine))
    centre = (np.array(grid.shape) - 1) / 2
    distance = np.linalg.norm((np.moveaxis(np.indices(grid.shape), 0, -1) - centre) * sides, axis=-1)
    radius = 0.42 * (np.array(grid.shape) * sides).min()
    mask = (distance < radius) & (distance > radius / 2)
    import nibabel

    (tmp_path / "masks").mkdir()
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), grid.affine), tmp_path / "masks" / "shell.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.int16), grid.affine), tmp_path / "fixed.nii.gz")

    def convert(*options: str | Path) -> None:
        subprocess.run([plastimatch, "convert", *options], check=True, capture_output=True)

    convert("--input-prefix", tmp_path / "masks", "--referenced-ct", series, "--modality", "MR",
            "--output-dicom", tmp_path / "out")  # fmt: skip
    (structure_set,) = (
        file
        for file in (tmp_path / "out").iterdir()
        if pydicom.dcmread(file, stop_before_pixels=True).SOPClassUID == RTStructureSetStorage
    )
    convert("--input", structure_set, "--fixed", tmp_path / "fixed.nii.gz", "--xor-contours",
            "--output-prefix", tmp_path / "back", "--prefix-format", "nii.gz")  # fmt: skip
    back = nibabel.load(next((tmp_path / "back").glob("*.nii.gz")))
    np.testing.assert_allclose(back.affine, grid.affine, atol=1e-2)
    (roi,) = read_rtstruct(structure_set, grid)
    drawn = roi.mask
    assert dice(drawn, mask) >= 0.99
    assert dice(drawn, np.asarray(back.dataobj) > 0) >= 0.99
    assert not drawn[tuple(np.round(centre).astype(int))]
