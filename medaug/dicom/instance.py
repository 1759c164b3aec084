"""Reads the header of one DICOM file: what it is, and where each of its slices lies. Pixels are not read."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    UID_dictionary,
)

from medaug.dicom.keywords import ATTRIBUTES, CONSTANT, IN_GROUPS, VARYING

SEGMENTATIONS = "1.2.840.10008.5.1.4.1.1.66."  # prefix of the SOP classes of segmentations and surfaces

_OTHERS = [
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ImagePositionPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "DimensionIndexSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_TAG = {
    keyword: Tag(keyword)
    for keyword in (*ATTRIBUTES, *CONSTANT, *VARYING, *_OTHERS, *(keyword for _, keyword in IN_GROUPS.values()))
}
_LONGEST_META = 1 << 13  # bytes; the transfer syntax of the file is within them
_LARGEST_INFLATED = 512 << 20  # bytes of a deflated dataset, of which pydicom holds several copies
_POSITIONAL = {"StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient", "FrameNumber"}


@dataclass(frozen=True)
class Plane:
    """One slice: an instance with a single frame, or one frame of a multi-frame instance.

    Attributes:
        position: ImagePositionPatient, LPS mm; None if it is missing.
        orientation: ImageOrientationPatient: direction of increasing column index, then of increasing row index; None
            if it is missing.
        pixel_spacing: mm between rows, then between columns; None if it is missing.
        slope: RescaleSlope, 1 if it is missing.
        intercept: RescaleIntercept, 0 if it is missing.
        rescale_type: RescaleType, "" if it is missing; None if values are not rescaled.
        acquisition: (keyword, value) pairs in which slices of a file or series may differ.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slope: float
    intercept: float
    rescale_type: str | None
    acquisition: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Instance:
    """One file.

    Attributes:
        path: path of the file.
        sop_class: SOPClassUID.
        sop_instance_uid: SOPInstanceUID.
        rows, columns: size of a plane, 0 if the object has none.
        samples: values per pixel; 1 for greyscale.
        photometric: PhotometricInterpretation.
        bits_stored: BitsStored.
        signed: whether PixelRepresentation is 1.
        complete: whether the file is long enough for its pixels (always true if they are compressed).
        frames: NumberOfFrames, 1 if it is missing.
        planes: one per frame, in their order, if functional groups describe the frames; else one.
        copies: other files with the same bytes; exports with a DICOMDIR often contain some.
        attributes: header values of the first frame as text by keyword; multiple values are joined by a backslash.
    """

    path: Path
    sop_class: str
    sop_instance_uid: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_stored: int
    signed: bool
    complete: bool
    frames: int
    planes: tuple[Plane, ...]
    copies: tuple[Path, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file and its copies."""
        return self.path, *self.copies


@dataclass(frozen=True)
class Record:
    """One file's instance, and the header values that assign it to a series."""

    instance: Instance
    patient_id: str
    study_uid: str
    series_uid: str
    number: int | None
    frame_of_reference: str


def read_headers(paths: Sequence[Path]) -> list[Record | str | None]:
    """Read headers; returns for each file its record, or why it cannot be read, or None if it is not DICOM."""
    with quiet():
        return [_read_header(path) for path in paths]


def uid_name(uid: str) -> str:
    """Return the standard's name of a SOP class or transfer syntax; an unknown UID is not quoted."""
    return UID_dictionary.get(uid, ("of an unknown kind",))[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom, whose warnings quote header values, and let it accept values that violate the standard."""
    logger, settings = logging.getLogger("pydicom"), pydicom.config.settings
    level, mode = logger.level, settings.reading_validation_mode
    logger.setLevel(logging.CRITICAL + 1)
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        settings.reading_validation_mode = mode


def _read_header(path: Path) -> Record | str | None:
    named = path.suffix.lower() in {".dcm", ".dicom", ".ima"}
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block for ever
            return "is a pipe or device, not a file" if named else None
        with path.open("rb") as file:
            start = file.read(_LONGEST_META)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not size:
        return "is empty (zero bytes)" if named else None
    if DeflatedExplicitVRLittleEndian.encode() in start and _is_bomb(path):
        return f"is deflated and expands to more than {_LARGEST_INFLATED >> 20} MiB"
    # A file without the preamble begins with the standard's first group (0002 or 0008).
    if start[128:132] != b"DICM" and start[:2] not in {b"\x02\x00", b"\x08\x00"}:
        return "is not a DICOM file" if named else None
    try:
        with path.open("rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAG.values()))
            rest = size - file.tell()
        if _text(dataset, "SOPClassUID") == MediaStorageDirectoryStorage:
            return None
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not _text(dataset, keyword):
                is_other = keyword == "SOPClassUID" and start[128:132] != b"DICM" and not named
                return None if is_other else f"has no {keyword}"
        return _record(path, dataset, rest)
    except Exception as error:
        # A damaged header can raise any exception in pydicom, and its text may quote the header.
        return f"has a damaged header ({type(error).__name__})"


def _is_bomb(path: Path) -> bool:
    """Whether a deflated file expands to more than `_LARGEST_INFLATED`; pydicom has no limit of its own."""
    with path.open("rb") as file:
        # The first element is the length of the part that is not deflated.
        length = re.match(rb"\x02\x00\x00\x00UL\x04\x00(.{4})", file.read(144)[132:], re.DOTALL)
        if length is None:
            return True
        file.seek(144 + int.from_bytes(length[1], "little"))
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while size <= _LARGEST_INFLATED and (chunk := unpacker.unconsumed_tail or file.read(1 << 16)):
            try:
                size += len(unpacker.decompress(chunk, 1 << 20))
            except zlib.error:
                return False  # damaged, which pydicom will report
    return size > _LARGEST_INFLATED


def _record(path: Path, dataset: Dataset, rest: int) -> Record:
    """Build the record of a header; `rest` is the number of bytes after it, which contain the pixels."""
    rows, columns = _number(dataset, "Rows") or 0, _number(dataset, "Columns") or 0
    samples = _number(dataset, "SamplesPerPixel") or 1
    attributes = _texts(dataset, [*ATTRIBUTES, *(keyword for keyword in CONSTANT if keyword not in ATTRIBUTES)])
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames and not _text(dataset, "SOPClassUID").startswith(SEGMENTATIONS):
        planes = _frames(dataset, frames)
        attributes |= {key: value for key, value in planes[0].acquisition if key in IN_GROUPS}
    else:
        planes = (_plane(dataset, _texts(dataset, VARYING)),)
    number_of_frames = _number(dataset, "NumberOfFrames") or 1
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    is_plain = syntax in {None, ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}
    bits = rows * columns * samples * number_of_frames * (_number(dataset, "BitsAllocated") or 0)
    return Record(
        Instance(
            path=path,
            sop_class=_text(dataset, "SOPClassUID"),
            sop_instance_uid=_text(dataset, "SOPInstanceUID"),
            rows=rows,
            columns=columns,
            samples=samples,
            photometric=_text(dataset, "PhotometricInterpretation"),
            bits_stored=_number(dataset, "BitsStored") or 0,
            signed=_number(dataset, "PixelRepresentation") == 1,
            complete=not is_plain or rest >= 8 + bits // 8,
            frames=number_of_frames,
            planes=planes,
            attributes=attributes,
        ),
        patient_id=_text(dataset, "PatientID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        number=_number(dataset, "SeriesNumber"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
    )


def _frames(dataset: Dataset, frames: Sequence[Dataset]) -> tuple[Plane, ...]:
    """Return the planes of a multi-frame object; a frame's own functional groups override the shared ones."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    pointers = [item.DimensionIndexPointer for item in dataset.get("DimensionIndexSequence") or []]
    dimensions = [keyword_for_tag(pointer) or f"dimension {pointer}" for pointer in pointers]
    planes = []
    for frame in frames:

        def macro(name: str, frame: Dataset = frame) -> Dataset:
            return (frame.get(name) or shared.get(name) or [Dataset()])[0]

        merged = Dataset()
        for name in (
            "PlanePositionSequence",
            "PlaneOrientationSequence",
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
        ):
            merged.update(macro(name))
        acquisition = {key: _text(macro(name), keyword) for key, (name, keyword) in IN_GROUPS.items()}
        indices = macro("FrameContentSequence").get("DimensionIndexValues")
        indices = indices if isinstance(indices, MultiValue) else [indices]
        acquisition |= {
            name: str(index) for name, index in zip(dimensions, indices, strict=False) if name not in _POSITIONAL
        }
        planes.append(_plane(merged, {key: value for key, value in acquisition.items() if value}))
    return tuple(planes)


def _plane(dataset: Dataset, acquisition: Mapping[str, str]) -> Plane:
    slope, intercept = _numbers(dataset, "RescaleSlope", 1), _numbers(dataset, "RescaleIntercept", 1)
    return Plane(
        position=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        rescale_type=_text(dataset, "RescaleType") if slope or intercept else None,
        acquisition=tuple(acquisition.items()),
    )


def _value(dataset: Dataset, keyword: str) -> Any:
    # By tag, because most elements are absent, and then a look-up by keyword is several times slower.
    element = dataset.get(_TAG[keyword])
    return None if element is None else element.value


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    if isinstance(value, MultiValue):
        return "\\".join(str(part) for part in value)
    return "" if value is None else str(value).strip()


def _texts(dataset: Dataset, keywords: Sequence[str]) -> dict[str, str]:
    return {keyword: text for keyword in keywords if (text := _text(dataset, keyword))}


def _number(dataset: Dataset, keyword: str) -> int | None:
    value = _value(dataset, keyword)
    return None if value is None or value == "" or isinstance(value, MultiValue) else int(value)


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the value if it is exactly `count` numbers, else None."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        return None
    values = tuple(float(part) for part in (value if isinstance(value, MultiValue) else [value]))
    return values if len(values) == count else None
