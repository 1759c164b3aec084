"""Writes a volume as a classic DICOM series with new headers; nothing is copied from a scanner's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from medaug.imaging.volume import LPS_TO_RAS, spacing

DATE, TIME = "20000101", "000000"
"""Used where the standard requires a date. It is constant, so that the same pair gives the same bytes."""
LONGEST = 64
"""Maximum number of characters in a DICOM long string (LO), such as a PatientID, a description or a segment's name."""

_NAMES = {
    "CT": r"(?:CB|LD|HR)?CT",
    "PT": r"PET|PT|SUV|FDG",
    "MR": r"MRI?|T[12](?:W|C|CE|GD|N|F)?|PDW?|FLAIR|STIR|DWI|ADC|DTI|DCE|SWI|TOF|BOLD",
}
_STEPS = 2**16 - 1  # difference between the largest and the smallest 16-bit value


@dataclass(frozen=True)
class Kind:
    """The DICOM class and values for a modality.

    Attributes:
        modality: Modality (0008,0060).
        sop_class: UID of the storage class.
        image_type: values of ImageType (0008,0008).
        module: elements that this class requires besides those that every image has.
    """

    modality: str
    sop_class: str
    image_type: tuple[str, ...]
    module: Mapping[str, Any]


KINDS = {
    "MR": Kind(
        "MR",
        MRImageStorage,
        ("DERIVED", "SECONDARY", "OTHER"),
        {
            "PatientPosition": "",
            "ScanningSequence": "RM",  # research mode, because no sequence of a scanner made the images
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "3D",
            "RepetitionTime": None,
            "EchoTime": None,
            "EchoTrainLength": None,
        },
    ),
    "CT": Kind(
        "CT",
        CTImageStorage,
        ("DERIVED", "SECONDARY", "AXIAL"),
        {"PatientPosition": "", "KVP": None, "AcquisitionNumber": None},
    ),
    "PT": Kind(
        "PT",
        PositronEmissionTomographyImageStorage,
        ("DERIVED", "PRIMARY"),  # for PET the standard allows no other second value
        {
            "SeriesDate": DATE,
            "SeriesTime": TIME,
            "AcquisitionDate": "",
            "AcquisitionTime": "",
            "Units": "NONE",
            "CountsSource": "EMISSION",
            "SeriesType": ["WHOLE BODY", "IMAGE"],
            "CorrectedImage": "",
            "DecayCorrection": "NONE",
            "CollimatorType": "NONE",
            "RadiopharmaceuticalInformationSequence": [],
            "PatientOrientationCodeSequence": [],
            "PatientGantryRelationshipCodeSequence": [],
            "FrameReferenceTime": "0",
            "ActualFrameDuration": None,
        },
    ),
    "OT": Kind(
        "OT",
        SecondaryCaptureImageStorage,
        ("DERIVED", "SECONDARY", "OTHER"),
        {"ConversionType": "SYN", "PatientOrientation": ""},
    ),
}


def kind_of(modality: str) -> Kind:
    """Choose the kind of DICOM object from a modality's name: MR, CT, PET, or else a secondary capture.

    Args:
        modality: name of the modality in the cohort ("T1", "FLAIR", "CT", "MRI T2").
    """
    words = [word.upper() for word in re.split(r"[^A-Za-z0-9]+", modality)]
    for kind, pattern in _NAMES.items():
        if any(re.fullmatch(pattern, word) for word in words):
            return KINDS[kind]
    return KINDS["OT"]


@dataclass(frozen=True)
class Study:
    """Values that all objects of one case share.

    Attributes:
        digest: SHA-256 of the case's content and recipe; every UID is derived from it.
        patient: PatientID.
        case: the case's name, for StudyDescription.
        synthetic: whether the images were computed: a synthetic pair, or a phantom.
        derivation: how the images were made, for DerivationDescription (at most 1,024 characters).
    """

    digest: str
    patient: str
    case: str
    synthetic: bool
    derivation: str

    def uid(self, *parts: object) -> str:
        """Return a UID that depends only on the case, the version of medaug and `parts`."""
        text = "\0".join(map(str, (version("medaug"), self.digest, *parts)))
        return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"

    def mark(self, dataset: Dataset) -> None:
        """Write into a header what the object is and which software made it."""
        if self.synthetic:
            dataset.SyntheticData = "YES"
        purpose = codes.DCM.SynthesizingEquipment if self.synthetic else codes.DCM.ProcessingEquipment
        dataset.ContributingEquipmentSequence = [
            _item(
                PurposeOfReferenceCodeSequence=[
                    _item(
                        CodeValue=purpose.value,
                        CodingSchemeDesignator=purpose.scheme_designator,
                        CodeMeaning=purpose.meaning,
                    )
                ],
                **equipment(),
                ContributionDescription=self.derivation,
            )
        ]


@dataclass(frozen=True)
class Stored:
    """Voxels as DICOM stores them: `values * slope + intercept`, where slope and intercept are decimal strings.

    Attributes:
        values: int16 or uint16.
        slope, intercept: decimal strings; None if the values are stored unchanged.
        error: the largest rounding error of a voxel, in the volume's unit; 0 if all voxels are exact.
    """

    values: NDArray[Any]
    slope: str | None = None
    intercept: str | None = None
    error: float = 0.0

    @classmethod
    def of(cls, array: NDArray[Any], through_zero: bool = False) -> Stored:
        """Store a volume in 16 bits: exactly if its values are whole numbers that fit, rounded otherwise.

        Rounded values differ from the originals by at most half a step. There are 65,535 steps between the smallest and
        the largest value (with `through_zero`, between minus and plus the largest absolute value).

        Args:
            array: array of finite values, of any shape and type.
            through_zero: whether the intercept must be 0, as in PET.
        """
        low, high = float(array.min()), float(array.max())
        for dtype in (np.int16, np.uint16):
            limits = np.iinfo(dtype)
            if (
                limits.min <= low
                and high <= limits.max
                and (array.dtype.kind in "iu" or (array == np.rint(array)).all())
            ):
                return cls(array.astype(dtype))
        if through_zero:
            intercept, step = "0", max(-low, high) / (_STEPS // 2)
            limits = np.iinfo(np.int16)
        else:
            intercept, step = decimal(low), (high - low) / _STEPS
            limits = np.iinfo(np.uint16)
        # Round up slightly: the decimal string has few digits, and the largest value must still fit.
        slope = decimal(step * (1 + 1e-9) or 1.0)
        exact = array.astype(np.float64)
        values = np.clip(np.rint((exact - float(intercept)) / float(slope)), limits.min, limits.max)
        error = float(np.abs(values * float(slope) + float(intercept) - exact).max())
        return cls(values.astype(limits.dtype), slope, intercept, error)


def series_of(
    study: Study, kind: Kind, number: int, description: str, stored: Stored, affine: NDArray[np.float64]
) -> list[FileDataset]:
    """Make a series with one dataset per slice along the third axis of the array.

    Args:
        study: the case's study.
        kind: kind of the modality.
        number: SeriesNumber, from 1.
        description: SeriesDescription, the modality's name.
        stored: voxels (X, Y, Z).
        affine: (4, 4), from voxel indices to RAS+ mm; its axes must be at right angles.
    """
    lps = LPS_TO_RAS @ affine
    columns, rows, slices = spacing(affine)
    directions = (lps[:3, :2] / (columns, rows)).T.ravel()
    made = []
    for k in range(stored.values.shape[2]):
        dataset = _new(study, kind, study.uid("image", number, k))
        dataset.SeriesInstanceUID = study.uid("series", number)
        dataset.SeriesNumber = number
        dataset.SeriesDescription = description
        dataset.Modality = kind.modality
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [decimal(x) for x in (lps @ [0, 0, k, 1])[:3]]
        dataset.ImageOrientationPatient = [decimal(x) for x in directions]
        dataset.PixelSpacing = [decimal(rows), decimal(columns)]  # the distance between rows comes first
        dataset.SliceThickness = decimal(slices)
        if kind.modality == "PT":
            dataset.ImageIndex, dataset.NumberOfSlices = k + 1, stored.values.shape[2]
        if stored.slope is not None or kind.modality in {"CT", "PT"}:
            dataset.RescaleIntercept, dataset.RescaleSlope = stored.intercept or "0", stored.slope or "1"
            if kind.modality != "PT":
                dataset.RescaleType = "HU" if kind.modality == "CT" else "US"
        _set_pixels(dataset, stored.values[:, :, k].T)
        made.append(dataset)
    return made


def _new(study: Study, kind: Kind, instance: str) -> FileDataset:
    """Make a dataset that holds everything except series, position and pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(kind.sop_class)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    elements: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": kind.sop_class,
        "SOPInstanceUID": instance,
        "PatientName": "",
        "PatientID": study.patient,
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": study.uid("study"),
        "StudyDate": DATE,
        "StudyTime": TIME,
        "StudyID": "1",
        "StudyDescription": study.case,
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "FrameOfReferenceUID": study.uid("frame of reference"),
        "PositionReferenceIndicator": "",
        "Laterality": "",
        "ImageType": list(kind.image_type),
        "ContentDate": DATE,
        "ContentTime": TIME,
        "DerivationDescription": study.derivation,
        **equipment(),
        **kind.module,
    }
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    study.mark(dataset)
    return dataset


def equipment() -> dict[str, str]:
    """Return the elements that name the software that made an object."""
    return {"Manufacturer": "medaug", "ManufacturerModelName": "medaug", "SoftwareVersions": version("medaug")}


def decimal(value: float) -> str:
    """Format a number as a DICOM decimal string (at most 16 characters), as precisely as possible."""
    return format_number_as_ds(0.0 if abs(value) < 1e-12 else float(value))


def _set_pixels(dataset: Dataset, pixels: NDArray[Any]) -> None:
    """Set the pixels (rows, columns) of a dataset, with 16 bits each."""
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
