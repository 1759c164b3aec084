"""DICOM trees of artificial patients to ingest, with labels of every kind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from dicom_files import LPS, axial, oblique, uid, write_enhanced, write_series
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, RTStructureSetStorage
from scipy import ndimage
from seg_files import write_seg

from medaug.imaging.nifti import write_volume

Done = subprocess.CompletedProcess[str]
SHAPE = (20, 18, 10)
RULES: dict[str, Any] = {
    "modalities": {"T1": {"SeriesDescription": "^ax t1"}, "FLAIR": {"SeriesDescription": "flair"}},
    "label": "**/label*",
    "structures": {"oedema": "^whole", "core": "core"},
    "labels": {0: "background", 1: "oedema", 3: "core"},
    "regions": {"whole tumour": [1, 3]},
}
T1, FLAIR = "ax T1 post contrast", "ax FLAIR"


@dataclass(frozen=True)
class Patient:
    """The content of one patient: voxels (columns, rows, slices), affine in RAS, label values; and its files."""

    t1: np.ndarray
    flair: np.ndarray
    affine: np.ndarray
    label: np.ndarray | None
    images: tuple[list[Path], list[Path]]


def head(seed: int) -> np.ndarray:
    """A textured ellipsoid in air, another for each seed."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, rng.uniform(0.8, 0.95, 3), strict=True)) < 1
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    signal = inside * (500 + 1500 * texture) + rng.normal(0, 6, SHAPE)
    return np.clip(signal, 0, 2000).astype(np.int16)


def boxes(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, [low, high) along columns, rows and slices, of the whole tumour and of the core inside it."""
    low = np.array([5 + index % 4, 5 + index // 4, 3])
    whole = np.stack([low, low + (7, 6, 4)], axis=1)
    return whole, whole + ((2, -2), (2, -1), (1, -1))


def fill(box: np.ndarray) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(*side) for side in box)] = 1
    return mask


def write_rtstruct(
    path: Path, image: Path, affine: np.ndarray, rois: Mapping[str, Sequence[np.ndarray]], **tags: Any
) -> Path:
    """Rectangles around boxes of voxels, slice by slice; a box within another of the same name is a hole."""
    first = pydicom.dcmread(image)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = RTStructureSetStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = uid("rtstruct", str(path))
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        setattr(dataset, keyword, first.get(keyword))
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SeriesNumber = "RTSTRUCT", 80
    dataset.SeriesInstanceUID = uid("rtstruct series", str(path))
    reference = Dataset()
    reference.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, parts) in enumerate(rois.items(), 1):
        roi, contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, first.FrameOfReferenceUID
        contours.ReferencedROINumber, contours.ContourSequence = number, []
        for (x0, x1), (y0, y1), (z0, z1) in parts:
            for z in range(z0, z1):
                corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
                points = LPS @ affine @ np.array([*corners.T, np.full(4, z), np.ones(4)])
                contour = Dataset()
                contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
                contour.ContourData = [f"{value:.6f}" for value in points[:3].T.ravel()]
                contours.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(contours)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_patient(
    folder: Path,
    index: int,
    label: str | None = "seg",
    affine: np.ndarray | None = None,
    names: str = "{}.dcm",
    flair_edit: Callable[[int, Dataset], None] | None = None,
    masks: tuple[np.ndarray, np.ndarray] | None = None,
    segments: tuple[str, str] = ("Whole tumour", "Tumour core"),
    enhanced: bool = False,
    **tags: Any,
) -> Patient:
    """T1 and FLAIR on one grid, and a label: seg, labelmap, rtstruct, ring (an RTSTRUCT with a hole), nifti or None."""
    affine = axial((1.0, 1.2, 3.0)) if affine is None else affine
    t1, flair = head(2 * index), head(2 * index + 1)
    tags = {"PatientID": f"PATIENT-{index}"} | tags
    images = write_series(folder, t1, affine, names=f"t1_{names}".format, SeriesDescription=T1, **tags)
    common = {"number": 2, "SeriesDescription": FLAIR, **tags}
    if enhanced:
        flairs = [write_enhanced(folder / f"flair_{names}".format(0), flair, affine, **common)]
    else:
        flairs = write_series(folder, flair, affine, names=f"flair_{names}".format, edit=flair_edit, **common)
    whole, core = boxes(index)
    truth = np.where(fill(core), 3, fill(whole)).astype(np.uint8)

    def own(segmentation: Dataset) -> None:
        segmentation.SeriesInstanceUID = uid("seg series", tags["PatientID"])
        segmentation.SOPInstanceUID = segmentation.file_meta.MediaStorageSOPInstanceUID = uid("seg", tags["PatientID"])
        for keyword, value in tags.items():
            setattr(segmentation, keyword, value)

    if label in {"seg", "labelmap"}:
        drawn = (fill(whole), fill(core)) if masks is None else masks
        kind = "BINARY"
        if label == "labelmap":
            kind, drawn = "LABELMAP", (drawn[0] * (drawn[1] == 0), drawn[1])
        write_seg(folder / "label_seg.dcm", images, drawn, kind, segments, own)
    elif label in {"rtstruct", "ring"}:
        rois = {segments[0]: [whole] if label == "rtstruct" else [whole, core], segments[1]: [core]}
        write_rtstruct(folder / "label_rt.dcm", images[0], affine, rois, **tags)
    elif label == "nifti":
        write_volume(folder / "label.nii.gz", truth, affine)
    return Patient(t1, flair, affine, None if label is None else truth, (images, flairs))


def compress(paths: Sequence[Path]) -> None:
    """Compress files in place, by run lengths."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)


def shuffle_instances(index: int, dataset: Dataset) -> None:
    dataset.InstanceNumber = 1 + 7 * index % SHAPE[2]


def write_localiser(folder: Path, **tags: Any) -> None:
    """Three planes in one series, which is not a volume, and which no rule matches."""
    for plane in range(3):
        turned = axial()[:, [*np.roll(range(3), plane), 3]]
        write_series(
            folder,
            head(99)[:, :, :1],
            turned,
            number=9,
            names=f"localiser_{plane}_{{}}".format,
            SeriesDescription="localizer",
            SOPInstanceUID=uid("localiser", plane, tags["PatientID"]),
            **tags,
        )


def write_tree(root: Path, **tags: Any) -> dict[str, Patient]:
    """Write eight patients that cover everything that is allowed; return them by PatientID."""
    steep = oblique((1.0, 1.2, 3.0))
    patients = [
        write_patient(root / "0", 0, "seg", steep, **tags),
        write_patient(root / "1" / "a" / "b", 1, "rtstruct", steep, **tags),
        write_patient(root / "2", 2, "nifti", steep, **tags),
        write_patient(root / "3", 3, "labelmap", names="IM{}", flair_edit=shuffle_instances, **tags),
        write_patient(root / "4", 4, "ring", **tags),
        write_patient(root / "5", 5, "seg", **tags),
        write_patient(root / "6", 6, None, enhanced=True, **tags),
        write_patient(root / "7", 7, "rtstruct", **tags),
    ]
    compress(patients[5].images[1])
    write_localiser(root / "7", PatientID="PATIENT-7", **tags)
    (root / "README.txt").write_text("no DICOM")
    return {f"PATIENT-{index}": patient for index, patient in enumerate(patients)}


def write_rules(folder: Path, **changes: Any) -> str:
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES | changes, sort_keys=False))
    return "rules=rules.yaml"


def private(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".private.json").read_text())


def by_patient(report: Path, out: Path) -> dict[str, list[dict[str, str]]]:
    """The findings by PatientID; those of the whole cohort are under "cohort"."""
    subjects, found = private(out)["subjects"], {}
    for finding in json.loads(report.read_text())["findings"]:
        who = subjects.get(finding["case"].rpartition("_")[0], finding["case"])
        found.setdefault(who, []).append(finding)
    return found


def write_duplicate(path: Path, copy: Path) -> None:
    """Write the same image to a file with different bytes."""
    dataset = pydicom.dcmread(path)
    dataset.ImageComments = "exported twice"
    dataset.save_as(copy)
