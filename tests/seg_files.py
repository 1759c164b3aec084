"""Builders of DICOM SEG, by highdicom, and RTSTRUCT for tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_files import item, uid
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from medaug.errors import UserError

NAMES = ("whole tumour", "core")
Contours = Sequence[np.ndarray]  # each (N, 3) RAS mm


def write_seg(
    path: Path,
    series: Sequence[Path],
    masks: Sequence[np.ndarray],
    kind: str = "BINARY",
    names: Sequence[str] = NAMES,
    edit: Callable[[Segmentation], None] | None = None,
    number: int = 99,
    **options: Any,
) -> Path:
    """A SEG by highdicom of masks (columns, rows, slices) in the order of the series' files.

    Its SeriesNumber is `number`, and with the PatientID it makes the UIDs.
    """
    images = [pydicom.dcmread(file) for file in series]
    pixels = np.stack([np.transpose(mask, (2, 1, 0)) for mask in masks], axis=-1)
    pixels = pixels.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(masks) + 1, dtype=np.uint8)).max(axis=-1)
    segmentation = Segmentation(
        source_images=images,
        pixel_array=pixels.copy(),
        segmentation_type=kind,
        segment_descriptions=[
            SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
            for number, name in enumerate(names, 1)
        ],
        series_instance_uid=uid("seg", images[0].PatientID, number),
        series_number=number,
        sop_instance_uid=uid("seg instance", images[0].PatientID, number),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    if edit:
        edit(segmentation)
    path.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_as(path)
    return path


def write_rtstruct(
    path: Path,
    rois: Mapping[str, Contours],
    image: Path | None = None,
    kind: str | Callable[[str, int], str] = "CLOSED_PLANAR",
    edit: Callable[[Dataset], None] | None = None,
    number: int = 95,
) -> Path:
    """An RTSTRUCT of ROIs by name.

    Args:
        path: the file.
        rois: their contours.
        image: a file of the series that they were drawn on, for patient, study and frame of reference; None: made up.
        kind: ContourGeometricType, of all or by ROI and index of the contour.
        edit: called with the dataset before it is written.
        number: SeriesNumber; the UIDs follow it and the PatientID.
    """
    source = Dataset() if image is None else pydicom.dcmread(image, stop_before_pixels=True)
    patient, frame = source.get("PatientID", ""), source.get("FrameOfReferenceUID", uid("frame"))
    instance = uid("rtstruct", patient, number)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName = "Nobody^Made Up"
    dataset.StudyInstanceUID = uid("study", patient)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        if keyword in source:
            dataset[keyword] = source[keyword]
    dataset.ReferringPhysicianName = source.get("ReferringPhysicianName", "")
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, instance
    dataset.SeriesInstanceUID = uid("rtstruct series", patient, number)
    dataset.Modality, dataset.SeriesNumber = "RTSTRUCT", number
    drawn_on = item(
        SeriesInstanceUID=source.get("SeriesInstanceUID", uid("series")),
        ContourImageSequence=[
            item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID=source.get("SOPInstanceUID", uid("image")))
        ],
    )
    study = item(RTReferencedSeriesSequence=[drawn_on])
    dataset.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    numbers = range(11, 11 + len(rois))
    dataset.StructureSetROISequence = [
        item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)
        for number, name in zip(numbers, rois, strict=True)
    ]
    dataset.ROIContourSequence = [
        item(
            ReferencedROINumber=number,
            ContourSequence=[
                item(
                    ContourGeometricType=kind if isinstance(kind, str) else kind(name, index),
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{value:.10g}"[:16] for value in (points * (-1, -1, 1)).ravel()],
                )
                for index, points in enumerate(contours)
            ],
        )
        for number, (name, contours) in zip(numbers, rois.items(), strict=True)
    ]
    if edit:
        edit(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def refused_copies(path: Path, count: int, read: Callable[[Path], object], start: str) -> int:
    """Read damaged copies of a file, every second one cut short and the others with flipped bits.

    Returns how many are refused; each error must be one line that begins with `start` and does not name the patient.
    """
    content = path.read_bytes()
    rng = random.Random(7)
    refused = 0
    for index in range(count):
        damaged = bytearray(content)
        if index % 2:
            del damaged[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.choice([1, 10, 100])):
                damaged[rng.randrange(132, len(content))] ^= 1 << rng.randrange(8)
        copy = path.with_name("damaged.dcm")
        copy.write_bytes(damaged)
        try:
            read(copy)
        except UserError as error:
            assert str(error).startswith(start) and "\n" not in str(error) and "Nobody" not in str(error)
            refused += 1
    return refused
