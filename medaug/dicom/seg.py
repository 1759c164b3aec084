"""DICOM SEG: reads segments as masks on the grid of an image, placed by coordinates.

Frames are read one by one with pydicom, and each is placed by its own position. So frames may be in any order, empty
frames may be missing, segments may overlap, and the grid may be flipped, permuted or cropped against the image's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels

from medaug.dicom.masks import LabelObject, Mask, NamedMask, guarded, one_line
from medaug.dicom.privacy import scrub
from medaug.errors import UserError
from medaug.imaging.volume import LPS_TO_RAS, SMALL_VOXELS, Header, Volume, shape_text

WHAT = "segmentation"
SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
TOLERANCE_MM = 5e-3  # frames whose heights differ by less than twice this are in one slice
_MAX_VOXELS = 2**31


def describe_seg(path: Path) -> LabelObject:
    """Read which segments a SEG contains and which images it references, without its pixels.

    Raises:
        UserError: the file is unreadable, damaged, or not a SEG. The text contains no path or patient data.
    """
    with guarded(WHAT):
        dataset = _open(path, stop_before_pixels=True)
        series = list(dataset.get("ReferencedSeriesSequence") or [])
        for study in dataset.get("StudiesContainingOtherReferencedInstancesSequence") or []:
            series += study.get("ReferencedSeriesSequence") or []
        instances = {str(i.ReferencedSOPInstanceUID) for s in series for i in s.get("ReferencedInstanceSequence") or []}
        if not instances:
            for group in dataset.get("PerFrameFunctionalGroupsSequence") or []:
                for derivation in group.get("DerivationImageSequence") or []:
                    instances |= {str(i.ReferencedSOPInstanceUID) for i in derivation.get("SourceImageSequence") or []}
        return LabelObject(
            names=tuple(name for _, name in _segments(dataset)),
            series_uids=frozenset(str(s.SeriesInstanceUID) for s in series),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
            sop_instance_uids=frozenset(instances),
        )


def read_seg(path: Path, grid: Header, terms: Collection[str] = ()) -> list[NamedMask]:
    """Read a SEG's segments onto the grid of an image.

    A fractional segment becomes a mask of values from half of MaximumFractionalValue on, and voxels outside the grid
    are left out; notes report both.

    Args:
        path: a BINARY, FRACTIONAL or LABELMAP file, compressed or not.
        grid: shape (X, Y, Z) and RAS affine of the image.
        terms: words that may identify a patient (`identifying_terms`), to be removed from messages.

    Returns:
        One mask per segment, in the order of the file.

    Raises:
        UserError: the file is unreadable, damaged, not a SEG, or not on the image's voxels (within a tenth of the
            smallest voxel side). The text contains no path or patient data.
    """
    with guarded(WHAT):
        dataset = _open(path)
        placed = _Placed.on(_Frames.of(dataset), grid)
        return _named_masks(dataset, placed, terms)


def read_seg_volume(path: Path) -> Volume:
    """Read a SEG on its own grid: columns, rows, slices ascending along the normal; values are segment numbers.

    Slices without a frame, between the first and last frames, are background.

    Raises:
        UserError: as for `read_seg`; or segments overlap, or frames do not form a grid.
    """
    with guarded(WHAT):
        dataset = _open(path)
        frames = _Frames.of(dataset)
        grid = frames.grid()
        numbers = [number for number, _ in _segments(dataset)]
        values = np.zeros(grid.shape, np.uint8 if max(numbers) < 256 else np.uint16)
        for number, segment in zip(numbers, _named_masks(dataset, _Placed.on(frames, grid), ()), strict=True):
            mask = segment.mask
            if values[mask].any():
                raise UserError(f"{WHAT}: its segments overlap", "read it with rules, whose order decides")
            values[mask] = number
        return Volume(values, grid.affine, values.dtype)


def _open(path: Path, stop_before_pixels: bool = False) -> pydicom.Dataset:
    dataset = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    if dataset.get("SOPClassUID") not in SOP_CLASSES:
        raise UserError(f"{WHAT}: not a DICOM SEG", "leave it out")
    return dataset


def _segments(dataset: pydicom.Dataset) -> list[tuple[int, str]]:
    """Return number and name of each segment, without number 0, the background that a label map may describe."""
    segments = [(int(s.SegmentNumber), s.get("SegmentLabel")) for s in dataset.SegmentSequence]
    return [(number, one_line(label, f"segment {number}")) for number, label in segments if number]


@dataclass(frozen=True)
class _Frames:
    """Positions of F frames.

    Attributes:
        shape: (rows, columns) of a frame.
        segments: (F,) int, number of the segment; 0 in a label map.
        origins: (F, 3) centre of the first pixel, RAS mm.
        columns: (F, 3) RAS mm from one column to the next.
        rows: (F, 3) RAS mm from one row to the next.
        step: distance in mm between slices that the file states, or 0.
        thickness: thickness of a slice in mm, or 0; slices may be closer or further apart.
    """

    shape: tuple[int, int]
    segments: NDArray[np.int64]
    origins: NDArray[np.float64]
    columns: NDArray[np.float64]
    rows: NDArray[np.float64]
    step: float
    thickness: float

    @classmethod
    def of(cls, dataset: pydicom.Dataset) -> _Frames:
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        if not per_frame or len(per_frame) != int(dataset.NumberOfFrames):
            raise UserError(f"{WHAT}: has no positions of its frames", "export it again, with a position per frame")
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
        is_map = dataset.SegmentationType == "LABELMAP"
        segments, positions, orientations, spacings = [], [], [], []
        for group in per_frame:

            def find(name: str, group: pydicom.Dataset = group) -> pydicom.Dataset:
                return (group.get(name) or shared[name].value)[0]

            measures = find("PixelMeasuresSequence")
            segments.append(0 if is_map else int(find("SegmentIdentificationSequence").ReferencedSegmentNumber))
            positions.append(np.array(find("PlanePositionSequence").ImagePositionPatient, float))
            orientations.append(np.array(find("PlaneOrientationSequence").ImageOrientationPatient, float))
            spacings.append(np.array(measures.PixelSpacing, float))
        orientation, spacing = np.array(orientations).reshape(-1, 2, 3), np.array(spacings)
        frames = cls(
            shape=(int(dataset.Rows), int(dataset.Columns)),
            segments=np.array(segments),
            origins=np.array(positions) * LPS_TO_RAS.diagonal()[:3],
            # The first value of PixelSpacing is the distance between rows.
            columns=orientation[:, 0] * spacing[:, 1:] * LPS_TO_RAS.diagonal()[:3],
            rows=orientation[:, 1] * spacing[:, :1] * LPS_TO_RAS.diagonal()[:3],
            step=float(measures.get("SpacingBetweenSlices") or 0),
            thickness=float(measures.get("SliceThickness") or 0),
        )
        if not all(np.isfinite(a).all() for a in (frames.origins, frames.columns, frames.rows)) or (spacing <= 0).any():
            raise UserError(f"{WHAT}: positions or spacings are not numbers", "export it again")
        return frames

    def grid(self) -> Header:
        """The grid that the frames span."""
        column, row = self.columns[0], self.rows[0]
        normal = np.cross(column, row)  # LPS to RAS is a rotation, so this is DICOM's normal
        normal /= np.linalg.norm(normal)
        heights = np.sort(self.origins @ normal)
        heights = heights[np.append(True, np.diff(heights) > 2 * TOLERANCE_MM)]
        gaps = np.diff(heights)
        step = self.step or self.thickness or 1.0
        if len(gaps):
            whole = gaps / (self.step or np.inf)
            # If the file states no step, or one that contradicts its frames, the smallest gap is the step.
            is_true = (np.abs(whole - np.round(whole)) < 0.02).all() and whole.min() > 0.5
            step = float(gaps.sum() / np.round(gaps / (self.step if is_true else gaps.min())).sum())
        slices = round(float(heights[-1] - heights[0]) / step) + 1
        shape = (self.shape[1], self.shape[0], slices)
        if not np.isfinite(step) or float(slices) * shape[0] * shape[1] > _MAX_VOXELS:
            raise UserError(f"{WHAT}: its frames would span {shape_text(shape)} voxels", "export it again")
        affine = np.eye(4)
        lowest = int(np.argmin(self.origins @ normal))
        affine[:3] = np.column_stack([column, row, normal * step, self.origins[lowest]])
        return Header(shape, affine, np.dtype(np.uint8))


@dataclass(frozen=True)
class _Placed:
    """Frames on a grid: pixel (row r, column c) of frame f is voxel first[f] + c * along[f, 0] + r * along[f, 1].

    Attributes:
        grid: the grid.
        segments: (F,) int.
        first: (F, 3) int, the voxel of the first pixel; may be outside the grid.
        along: (F, 2, 3) int, signed unit vectors: from one column to the next, and from one row to the next.
    """

    grid: Header
    segments: NDArray[np.int64]
    first: NDArray[np.int64]
    along: NDArray[np.int64]

    @classmethod
    def on(cls, frames: _Frames, grid: Header) -> _Placed:
        to_mm = grid.affine[:3, :3]
        inverse = np.linalg.inv(to_mm)
        first = (frames.origins - grid.affine[:3, 3]) @ inverse.T
        along = np.stack([frames.columns, frames.rows], axis=1) @ inverse.T
        whole_first, whole_along = np.round(first), np.round(along)
        corners = np.array([(c, r) for c in (0, frames.shape[1] - 1) for r in (0, frames.shape[0] - 1)], float)
        off = (first - whole_first)[:, None] + corners @ (along - whole_along)  # (F, 4, 3) voxels
        furthest = float(np.linalg.norm(off @ to_mm.T, axis=-1).max())
        is_axes = (np.abs(whole_along).sum(axis=2) == 1).all() and (np.abs(whole_along).sum(axis=1) <= 1).all()
        if not is_axes or furthest > SMALL_VOXELS * min(grid.spacing):
            own = (np.linalg.norm(frames.columns[0]), np.linalg.norm(frames.rows[0]))
            sizes = f"its pixels measure {own[0]:.4g}x{own[1]:.4g} mm, the image's voxels " + "x".join(
                f"{side:.4g}" for side in grid.spacing
            )
            raise UserError(
                f"{WHAT}: is up to {furthest:.3g} mm away from the image's voxels ({sizes} mm)",
                "choose the series that it was drawn on, or resample it to the image",
            )
        return cls(grid, frames.segments, whole_first.astype(np.int64), whole_along.astype(np.int64))

    def put(self, volume: NDArray[Any], frame: int, pixels: NDArray[Any]) -> int:
        """Write the nonzero pixels (rows, columns) of a frame into a volume; return how many are outside the grid."""
        axes = [int(np.flatnonzero(vector)[0]) for vector in (self.along[frame, 1], self.along[frame, 0])]
        normal = 3 - sum(axes)
        height = self.first[frame, normal]
        total = int(np.count_nonzero(pixels))
        if not 0 <= height < volume.shape[normal]:
            return total
        keep, at = [], []
        for side, axis, sign in zip(pixels.shape, axes, self.along[frame, [1, 0], axes], strict=True):
            low = int(self.first[frame, axis]) - (side - 1 if sign < 0 else 0)
            start = max(-low, 0)
            stop = max(min(side, volume.shape[axis] - low), start)
            # Slices of the flipped frame and of the volume are many times faster than lists of indices.
            keep.append(slice(start, stop))
            at.append(slice(low + start, low + stop))
            pixels = np.flip(pixels, len(keep) - 1) if sign < 0 else pixels
        cropped = pixels[tuple(keep)]
        np.copyto(np.transpose(volume, (normal, *axes))[height][tuple(at)], cropped, where=cropped != 0)
        return total - int(np.count_nonzero(cropped))


def _named_masks(dataset: pydicom.Dataset, placed: _Placed, terms: Collection[str]) -> list[NamedMask]:
    segments = _segments(dataset)
    draw: Callable[[int], tuple[Mask, list[str]]] = partial(_draw, dataset, placed)
    if dataset.SegmentationType == "LABELMAP":
        draw = partial(_draw_from_map, cache(partial(_draw_map, dataset, placed)))
    elif len(unknown := np.setdiff1d(placed.segments, [number for number, _ in segments])):
        raise UserError(f"{WHAT}: has frames of segment {unknown[0]}, which it does not describe", "export it again")
    return [NamedMask(name, scrub(name, terms), partial(draw, number)) for number, name in segments]


def _draw(dataset: pydicom.Dataset, placed: _Placed, number: int) -> tuple[Mask, list[str]]:
    """Return the mask of a BINARY or FRACTIONAL segment, and notes."""
    with guarded(WHAT):
        notes, half = [], 0.5
        if dataset.SegmentationType == "FRACTIONAL":
            half = int(dataset.MaximumFractionalValue) / 2
            notes = [f"fractional; the mask is values from half of the maximum ({half:g} of {2 * half:g})"]
        mask: Mask = np.zeros(placed.grid.shape, bool)
        outside = 0
        for frame, pixels in _pixels(dataset, np.flatnonzero(placed.segments == number)):
            outside += placed.put(mask, frame, pixels >= half)
        return mask, notes + _outside(outside)


def _draw_map(dataset: pydicom.Dataset, placed: _Placed) -> tuple[NDArray[Any], int]:
    """Return a whole label map on the grid, and the number of pixels outside of it."""
    known = [0, *(number for number, _ in _segments(dataset))]
    background = int(dataset.get("PixelPaddingValue") or 0)
    values = np.zeros(placed.grid.shape, np.uint16)
    outside = 0
    for frame, pixels in _pixels(dataset, np.arange(len(placed.segments))):
        pixels = np.where(pixels == background, 0, pixels)
        unknown = np.setdiff1d(pixels, known)
        if len(unknown):
            raise UserError(f"{WHAT}: no segment describes its value {unknown[0]}", "export it again")
        outside += placed.put(values, frame, pixels)
    return values, outside


def _draw_from_map(read: Callable[[], tuple[NDArray[Any], int]], number: int) -> tuple[Mask, list[str]]:
    with guarded(WHAT):
        values, outside = read()
        return values == number, _outside(outside)


def _pixels(dataset: pydicom.Dataset, frames: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield frame number and pixels (rows, columns) of some frames."""
    shape = (int(dataset.Rows), int(dataset.Columns))
    if dataset.BitsAllocated == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        # Frames are packed without gaps, so most begin within a byte; pydicom 3.0 loses the end of those.
        packed = np.frombuffer(dataset.PixelData, np.uint8)
        size = shape[0] * shape[1]
        for frame in frames.tolist():
            first, skip = divmod(frame * size, 8)
            bits = np.unpackbits(packed[first : first + (skip + size + 7) // 8], bitorder="little")
            yield frame, bits[skip : skip + size].reshape(shape)
    elif len(frames):  # an empty list of indices would mean all frames
        yield from zip(frames.tolist(), iter_pixels(dataset, indices=frames.tolist(), raw=True), strict=True)


def _outside(voxels: int) -> list[str]:
    return [f"{voxels} voxels are outside the image and were left out"] if voxels else []
