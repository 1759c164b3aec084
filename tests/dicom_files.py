"""Builders of small, valid DICOM for tests: classic MR and CT series, enhanced multi-frame MR.

Arrays are (columns, rows, slices) of stored integers and affines map their indices to RAS+ mm, as in `Volume`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

SOP_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def uid(*parts: object) -> str:
    """The same valid UID for the same parts."""
    return str(generate_uid(entropy_srcs=[repr(part) for part in parts]))


def oblique(spacing: Sequence[float] = (1.0, 1.0, 3.0), angles: Sequence[float] = (0.2, -0.3, 0.4)) -> NDArray[Any]:
    """A rotated affine (4, 4), RAS, right-handed in DICOM's sense: the third axis is the slices' normal."""
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = z @ y @ x @ np.diag(spacing)
    affine[:3, 3] = (-30.5, 12.25, 40.0)
    return affine


def axial(spacing: Sequence[float] = (1.0, 1.0, 3.0), origin: Sequence[float] = (20.0, 30.0, -10.0)) -> NDArray[Any]:
    """The ordinary axial affine (4, 4): columns run to the left, rows to the back, slices upwards. Origin in RAS."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = origin
    return affine


def ramp(shape: Sequence[int] = (6, 5, 4), dtype: Any = np.int16) -> NDArray[Any]:
    """Voxels (columns, rows, slices) that are all different: 0, 1, 2, ..."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def write_series(
    folder: Path,
    array: ArrayLike,
    affine: ArrayLike | None = None,
    *,
    positions: Sequence[Sequence[float]] | None = None,
    modality: str = "MR",
    number: int = 1,
    slope: float | Sequence[float] | None = None,
    intercept: float | Sequence[float] | None = None,
    names: Callable[[int], str] = "{:04d}.dcm".format,
    edit: Callable[[int, Dataset], None] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write one classic series, a file per slice, and return the paths in the array's slice order.

    Args:
        folder: made where it is missing; several series may share one.
        array: (columns, rows, slices) integers (uint8, int16 or uint16).
        affine: (4, 4) RAS; `axial()` where it is None. Its first two columns give orientation and pixel spacing.
        positions: ImagePositionPatient (LPS mm) of each slice, instead of the affine's.
        modality: MR, CT or PT.
        number: SeriesNumber; also makes the series' UIDs distinct (study and frame of reference depend on PatientID).
        slope: RescaleSlope, one for all or one per slice; None leaves it out (a CT or PT gets 1 and 0).
        intercept: RescaleIntercept, likewise.
        names: file name by slice index; `"IM{}".format` has no extension, "a/{}".format makes folders.
        edit: called with (slice index, dataset) before each is written.
        tags: any keyword of any value, over the defaults (PatientID, SeriesDescription, SeriesInstanceUID, ...);
            None takes the element out.
    """
    array = np.asarray(array)
    lps = LPS @ (axial() if affine is None else np.asarray(affine, dtype=np.float64))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    count = array.shape[2]
    if modality != "MR" and slope is None:
        slope, intercept = 1, 0
    paths = []
    for index in range(count):
        dataset = _dataset(SOP_CLASSES[modality], modality, number, tags, f"{number}.{index}")
        position = (lps @ [0, 0, index, 1])[:3] if positions is None else positions[index]
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = _decimals(position)
        dataset.ImageOrientationPatient = _decimals((lps[:3, :2] / spacing[:2]).T.ravel())
        dataset.PixelSpacing = _decimals((spacing[1], spacing[0]))  # between rows first, then between columns
        dataset.SliceThickness = "1.25"  # deliberately not the distance between slices
        if slope is not None:
            dataset.RescaleSlope = _decimal(np.broadcast_to(slope, count)[index])
            dataset.RescaleIntercept = _decimal(np.broadcast_to(0 if intercept is None else intercept, count)[index])
            if modality == "CT":
                dataset.RescaleType = "HU"
        _set_pixels(dataset, array[:, :, index].T)
        _apply(dataset, tags)
        if edit is not None:
            edit(index, dataset)
        paths.append(_save(dataset, folder / names(index)))
    return paths


def write_enhanced(
    path: Path,
    array: ArrayLike,
    affine: ArrayLike | None = None,
    *,
    number: int = 1,
    slope: float | Sequence[float] = 1,
    intercept: float | Sequence[float] = 0,
    order: Sequence[int] | None = None,
    edit: Callable[[Dataset], None] | None = None,
    **tags: Any,
) -> Path:
    """Write one enhanced multi-frame MR file.

    Args:
        path: the file.
        array: (columns, rows, slices) or (columns, rows, slices, times) integers.
        affine: (4, 4) RAS; `axial()` where it is None.
        number: as in `write_series`.
        slope: of the pixel value transformation, shared, or one per frame (time by time, slice by slice).
        intercept: likewise.
        order: the frames' order in the file, as indices of (time, slice) in C order; those left out are
            missing. None is that order.
        edit: called with the dataset before it is written.
        tags: as in `write_series`.
    """
    array = np.asarray(array)
    stack = array[..., None] if array.ndim == 3 else array
    lps = LPS @ (axial() if affine is None else np.asarray(affine, dtype=np.float64))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    slices, times = stack.shape[2:]
    frames = [(time, index) for time in range(times) for index in range(slices)]
    shared_values = np.ndim(slope) == 0 and np.ndim(intercept) == 0
    dataset = _dataset(EnhancedMRImageStorage, "MR", number, tags, f"{number}.enhanced")
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    organisation = uid("organisation", number)
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organisation)]
    pointers = [0x00209056, 0x00209057, 0x00209128]  # StackID, InStackPositionNumber, TemporalPositionIndex
    dataset.DimensionIndexSequence = [
        item(DimensionOrganizationUID=organisation, DimensionIndexPointer=tag, FunctionalGroupPointer=0x00209111)
        for tag in pointers
    ]
    shared = item(
        PixelMeasuresSequence=[
            item(PixelSpacing=_decimals((spacing[1], spacing[0])), SliceThickness="1.25", SpacingBetweenSlices="9.5")
        ],
        PlaneOrientationSequence=[item(ImageOrientationPatient=_decimals((lps[:3, :2] / spacing[:2]).T.ravel()))],
    )
    if shared_values:
        shared.PixelValueTransformationSequence = [_values(slope, intercept)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    per_frame, planes = [], []
    for position in order if order is not None else range(len(frames)):
        time, index = frames[position]
        group = item(
            FrameContentSequence=[
                item(
                    StackID="1",
                    InStackPositionNumber=index + 1,
                    TemporalPositionIndex=time + 1,
                    DimensionIndexValues=[1, index + 1, time + 1],
                )
            ],
            PlanePositionSequence=[item(ImagePositionPatient=_decimals((lps @ [0, 0, index, 1])[:3]))],
        )
        if not shared_values:
            per_slope, per_intercept = (np.broadcast_to(value, len(frames))[position] for value in (slope, intercept))
            group.PixelValueTransformationSequence = [_values(per_slope, per_intercept)]
        per_frame.append(group)
        planes.append(stack[:, :, index, time].T)
    dataset.PerFrameFunctionalGroupsSequence = per_frame
    dataset.NumberOfFrames = len(planes)
    _set_pixels(dataset, np.stack(planes))
    _apply(dataset, tags)
    if edit is not None:
        edit(dataset)
    return _save(dataset, path)


def _dataset(sop_class: str, modality: str, number: int, tags: dict[str, Any], instance: str) -> FileDataset:
    patient = tags.get("PatientID", "MADE-UP-1")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    series = tags.get("SeriesInstanceUID", uid("series", patient, number))
    defaults: dict[str, Any] = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": uid("instance", series, instance),
        "StudyInstanceUID": uid("study", patient),
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": uid("frame", patient),
        "PatientID": patient,
        "PatientName": "Nobody^Made Up",
        "PatientBirthDate": "19500101",
        "PatientSex": "O",
        "StudyDate": "20200102",
        "StudyTime": "101112",
        "StudyID": "1",
        "AccessionNumber": "ACC0001",
        "ReferringPhysicianName": "",
        "Modality": modality,
        "SeriesNumber": number,
        "SeriesDescription": f"made-up {number}",
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
        "Manufacturer": "nobody",
        "BodyPartExamined": "BRAIN",
        "AcquisitionNumber": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"],
    }
    if modality == "MR":
        defaults |= {
            "ScanningSequence": "SE",
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "2D",
            "RepetitionTime": "500",
            "EchoTime": "10",
            "EchoTrainLength": "1",
        }
    if modality == "CT":
        defaults |= {"KVP": "120"}
    for keyword, value in defaults.items():
        setattr(dataset, keyword, value)
    return dataset


def _apply(dataset: Dataset, tags: dict[str, Any]) -> None:
    for keyword, value in tags.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)


def _set_pixels(dataset: Dataset, pixels: NDArray[Any]) -> None:
    """Pixels (rows, columns) or (frames, rows, columns)."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def _save(dataset: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**tags: Any) -> Dataset:
    """An item of a sequence."""
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return item


def _values(slope: float, intercept: float) -> Dataset:
    return item(RescaleSlope=_decimal(slope), RescaleIntercept=_decimal(intercept), RescaleType="US")


def _decimal(value: float) -> str:
    """Format a number as a decimal string of at most 16 characters, as precisely as that allows."""
    for digits in range(15, 0, -1):
        if len(text := f"{float(value):.{digits}g}") <= 16:
            return text
    raise ValueError(value)


def _decimals(values: Sequence[float] | NDArray[Any]) -> list[str]:
    return [_decimal(0.0 if abs(value) < 1e-12 else value) for value in values]
