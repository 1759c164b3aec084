"""DICOM RTSTRUCT: fills closed contours on the grid of an image, slice by slice, placed by coordinates.

Contours are matched to slices by position, never by the images that they reference: some tools reference wrong images
on oblique series. Within a plane they are filled by the even-odd rule, so nested contours are holes (XOR), and so are
keyholes (single contours with a channel to an inner boundary).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from medaug.dicom.masks import LabelObject, Mask, NamedMask, guarded, one_line
from medaug.dicom.privacy import scrub
from medaug.errors import UserError
from medaug.imaging.volume import Header

WHAT = "structure set"
SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
# The last is not in the standard: some tools use it for closed contours that they interpolated between drawn ones.
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR")
ENDS_MEET = 1.0  # voxels; an open contour whose ends are at most this far apart is read as closed
ON_EDGE = 1e-3  # voxels; a voxel centre this close to a contour counts as lying on it
# All in distances between slices:
MAX_TILT = 0.25  # largest extent of a contour along the normal
SAME_PLANE = 0.1
BETWEEN = 0.4  # if contours are further than this from the slices, the structure set was drawn on another series


def describe_rtstruct(path: Path) -> LabelObject:
    """Read which ROIs an RTSTRUCT contains and which images it references.

    Raises:
        UserError: the file is unreadable, damaged, or not an RTSTRUCT. The text contains no path or patient data.
    """
    with guarded(WHAT):
        dataset = _open(path)
        frames = dataset.get("ReferencedFrameOfReferenceSequence") or []
        series = [
            one
            for frame in frames
            for study in frame.get("RTReferencedStudySequence") or []
            for one in study.get("RTReferencedSeriesSequence") or []
        ]
        images = [image for one in series for image in one.get("ContourImageSequence") or []]
        return LabelObject(
            names=tuple(name for _, name, _ in _rois(dataset)),
            series_uids=frozenset(str(one.SeriesInstanceUID) for one in series),
            frame_of_reference=_frame_of_reference(dataset),
            sop_instance_uids=frozenset(str(image.ReferencedSOPInstanceUID) for image in images),
        )


def read_rtstruct(path: Path, grid: Header, terms: Collection[str] = ()) -> list[NamedMask]:
    """Read an RTSTRUCT's ROIs onto the grid of an image.

    Each slice gets the contours of the nearest plane within half the distance between slices. An open contour whose
    ends are within a voxel is read as closed. Points, and contours outside the image, are left out; an ROI that
    consists only of points is empty. Notes report all of this.

    Args:
        path: the file.
        grid: shape (X, Y, Z) and RAS affine of the image; slices may be along any of its axes.
        terms: words that may identify a patient (`identifying_terms`), to be removed from messages.

    Returns:
        One mask per ROI, in the order of the file.

    Raises:
        UserError: the file is unreadable, damaged, or not an RTSTRUCT. When a mask is made: contours are open, not
            parallel to slices, between slices, on every second slice or fewer, or in another frame of reference than
            the file's first. The text contains no path or patient data.
    """
    with guarded(WHAT):
        dataset = _open(path)
        items: dict[int, list[pydicom.Dataset]] = defaultdict(list)
        for roi in dataset.get("ROIContourSequence") or []:
            items[int(roi.ReferencedROINumber)] += roi.get("ContourSequence") or []
        frame = _frame_of_reference(dataset)
        return [
            NamedMask(name, shown, partial(_draw, items[number], grid, shown, own_frame in ("", frame)))
            for number, name, own_frame in _rois(dataset)
            for shown in [scrub(name, terms)]
        ]


def fill(polygons: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> Mask:
    """Rasterise several polygons by the even-odd rule.

    A pixel is filled if a ray from its centre crosses an odd number of edges, or if its centre lies on an edge (within
    1e-3 pixels). So contours through the centres of outer pixels include these pixels, and the result does not depend
    on flips or transposition of the grid.

    Args:
        polygons: each (N, 2): continuous indices, with pixel centres at whole numbers; closed implicitly; parts may
            be outside the image.
        shape: shape of the image.

    Returns:
        `shape` bool.
    """
    image: Mask = np.zeros(shape, bool)
    rings = [ring for ring in polygons if len(ring)]
    if not rings:
        return image
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    # Only the bounding box is processed. Clip before converting: a damaged coordinate may not fit an integer.
    low = np.clip(np.floor(start.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.floor(start.max(axis=0)) + 2, low, shape).astype(int)
    box = image[low[0] : high[0], low[1] : high[1]]
    if not box.size:
        return image
    start, end = start - low, end - low
    # An edge that crosses row j at u flips all pixels of that row from ceil(u) on. By the half-open rule, a vertex on a
    # row counts once if the polygon passes through the row there, and twice or never if it turns back.
    row, u = _crossings(start, end, 0.0, half_open=True, rows=box.shape[1])
    first = np.clip(np.ceil(u), 0, box.shape[0]).astype(int)
    flips = np.bincount(row * (box.shape[0] + 1) + first, minlength=box.shape[1] * (box.shape[0] + 1))
    box[:] = (np.cumsum(flips.reshape(box.shape[1], -1), axis=1)[:, :-1] & 1).astype(bool).T
    steep = np.abs(end - start)[:, 1] >= np.abs(end - start)[:, 0]
    for edges, view, order in ((steep, box, slice(None)), (~steep, box.T, slice(None, None, -1))):
        row, u = _crossings(start[edges][:, order], end[edges][:, order], ON_EDGE, half_open=False, rows=view.shape[1])
        column = np.clip(np.round(u), -1, view.shape[0])
        on = (np.abs(u - column) <= ON_EDGE) & (column >= 0) & (column < view.shape[0])
        view[column[on].astype(int), row[on]] = True
    return image


def _crossings(
    start: NDArray[np.float64], end: NDArray[np.float64], margin: float, half_open: bool, rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find where edges (N, 2) cross the lines v = 0..rows-1; returns line and u of each crossing."""
    falling = (start[:, 1] > end[:, 1])[:, None]
    lower, upper = np.where(falling, end, start), np.where(falling, start, end)
    first = np.ceil(np.clip(lower[:, 1] - margin, 0, rows))
    last = np.ceil(upper[:, 1]) - 1 if half_open else np.floor(upper[:, 1] + margin)
    count = np.maximum(np.clip(last, -1, rows - 1) - first + 1, 0).astype(int)
    edge = np.repeat(np.arange(len(start)), count)
    line = first[edge].astype(int) + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    rise = (upper - lower)[edge]
    slope = np.divide(rise[:, 0], rise[:, 1], out=np.zeros(len(edge)), where=rise[:, 1] != 0)
    return line, lower[edge, 0] + (line - lower[edge, 1]) * slope


def _open(path: Path) -> pydicom.Dataset:
    dataset = pydicom.dcmread(path)
    if dataset.get("SOPClassUID") != SOP_CLASS:
        raise UserError(f"{WHAT}: not a DICOM RTSTRUCT", "leave it out")
    return dataset


def _rois(dataset: pydicom.Dataset) -> list[tuple[int, str, str]]:
    """Return number, name and frame of reference of each ROI."""
    return [
        (
            int(roi.ROINumber),
            one_line(roi.get("ROIName"), f"ROI {roi.ROINumber}"),
            str(roi.get("ReferencedFrameOfReferenceUID") or ""),
        )
        for roi in dataset.StructureSetROISequence
    ]


def _frame_of_reference(dataset: pydicom.Dataset) -> str:
    named = [frame.get("FrameOfReferenceUID") for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []]
    named += [dataset.get("FrameOfReferenceUID"), *(frame for _, _, frame in _rois(dataset))]
    return next((str(uid) for uid in named if uid), "")


def _points(contour: pydicom.Dataset) -> NDArray[np.float64]:
    """Return the points of a contour, (N, 3) RAS mm."""
    # Parse the raw bytes, because pydicom's conversion to decimal objects takes longer than everything else.
    value = contour.get_item("ContourData").value
    numbers = np.array(value.split(b"\\") if isinstance(value, bytes) else value, float).reshape(-1, 3)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError
    return numbers * (-1.0, -1.0, 1.0)


def _draw(contours: Sequence[pydicom.Dataset], grid: Header, name: str, is_same_frame: bool) -> tuple[Mask, list[str]]:
    """Return the mask of one ROI, and notes."""
    mask: Mask = np.zeros(grid.shape, bool)
    with guarded(f'{WHAT}: ROI "{name}"'):
        if not is_same_frame:
            raise UserError(f'{WHAT}: ROI "{name}" has another frame of reference', "choose rules that leave it out")
        areas = [contour for contour in contours if contour.ContourGeometricType != "POINT"]
        notes = [f"{len(contours) - len(areas)} points were left out"] if len(areas) < len(contours) else []
        if not areas:
            return mask, [*notes, "has no closed contour"]
        inverse = np.linalg.inv(grid.affine)
        # By the even-odd rule, a contour that occurs twice would erase itself.
        distinct = {points.tobytes(): (points, contour) for contour in areas for points in [_points(contour)]}
        if len(distinct) < len(areas):
            notes.append(f"{len(areas) - len(distinct)} contours occur twice")
        indices = [points @ inverse[:3, :3].T + inverse[:3, 3] for points, _ in distinct.values()]
        is_open = [contour.ContourGeometricType not in CLOSED for _, contour in distinct.values()]
        notes += _close(indices, is_open, grid, name)
        tilts = np.array([np.ptp(points, axis=0) for points in indices])
        axis = int(np.argmin(tilts.sum(axis=0) * grid.spacing))
        tilt = float(tilts[:, axis].max())
        if tilt > MAX_TILT:
            raise UserError(
                f'{WHAT}: ROI "{name}": a contour is tilted out of its slice by {tilt * grid.spacing[axis]:.3g} mm',
                "choose the series that it was drawn on",
            )
        planes = _planes(indices, axis)
        notes += _fill_slices(np.moveaxis(mask, axis, 2), planes, grid.spacing[axis], name)
        return mask, notes


def _close(contours: Sequence[NDArray[np.float64]], is_open: Sequence[bool], grid: Header, name: str) -> list[str]:
    """Check that open contours, (N, 3) in voxels, can be read as closed; returns notes."""
    gaps = [points[-1] - points[0] for points, flag in zip(contours, is_open, strict=True) if flag]
    if wide := [gap for gap in gaps if np.abs(gap).max() > ENDS_MEET]:
        widest = max(float(np.linalg.norm(grid.affine[:3, :3] @ gap)) for gap in wide)
        raise UserError(
            f'{WHAT}: ROI "{name}": {len(wide)} of {len(contours)} contours are open, with ends up to {widest:.3g} mm '
            "apart, so the enclosed area is unknown",
            "close them in the tool that drew them, or leave the ROI out with structures",
        )
    return [f"{len(gaps)} open contours were read as closed, because their ends meet"] if gaps else []


def _planes(contours: Sequence[NDArray[np.float64]], axis: int) -> list[tuple[float, list[NDArray[np.float64]]]]:
    """Group contours (N, 3) by plane: its height, in distances between slices, and its contours (N, 2)."""
    planes: list[tuple[float, list[NDArray[np.float64]]]] = []
    for height, points in sorted(((float(c[:, axis].mean()), c) for c in contours), key=lambda pair: pair[0]):
        if not planes or height - planes[-1][0] > SAME_PLANE:
            planes.append((height, []))
        planes[-1][1].append(np.delete(points, axis, axis=1))
    return planes


def _fill_slices(
    mask: Mask, planes: Sequence[tuple[float, list[NDArray[np.float64]]]], step: float, name: str
) -> list[str]:
    """Fill a mask's slices (its last axis) in place; return notes."""
    nearest: dict[int, tuple[float, list[NDArray[np.float64]]]] = {}
    outside = 0
    for height, rings in planes:
        if not -0.5 <= height <= mask.shape[2] - 0.5:
            outside += len(rings)
            continue
        index = min(int(np.floor(height + 0.5)), mask.shape[2] - 1)
        if index not in nearest or abs(height - index) < abs(nearest[index][0] - index):
            nearest[index] = (height, rings)
    notes = [f"{outside} contours lie outside the image and were left out"] if outside else []
    if not nearest:
        return notes
    offsets = np.array([abs(height - index) for index, (height, _) in nearest.items()])
    if np.median(offsets) > BETWEEN:
        raise UserError(
            f'{WHAT}: ROI "{name}": contours are between slices ({np.median(offsets) * step:.3g} mm away)',
            "choose the series that it was drawn on",
        )
    if offsets.max() > SAME_PLANE:
        notes.append(f"contours are up to {offsets.max() * step:.3g} mm away from their slices")
    for index, (_, rings) in nearest.items():
        mask[:, :, index] = fill(rings, (mask.shape[0], mask.shape[1]))
    filled = sorted(nearest)
    gaps = np.diff(filled)
    # If at least three planes are evenly spaced with empty slices between, and neighbours overlap, the contours were
    # drawn on thicker slices.
    if len(gaps) > 1 and gaps[0] > 1 and (gaps == gaps[0]).all():
        pairs = zip(filled, filled[1:], strict=False)
        if all((mask[:, :, lower] & mask[:, :, upper]).any() for lower, upper in pairs):
            raise UserError(
                f'{WHAT}: ROI "{name}": contours are {gaps[0] * step:.3g} mm apart, but slices {step:.3g} mm',
                "choose the series that it was drawn on",
            )
    return notes
