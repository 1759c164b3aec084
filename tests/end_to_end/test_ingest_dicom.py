"""`python -m medaug.ingest` on DICOM trees, as a user types it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from dicom_files import LPS, axial, oblique, uid, write_enhanced, write_series
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, RTStructureSetStorage
from scipy import ndimage
from seg_files import write_seg
from test_bad_input import assert_refused
from test_ingest import assert_nothing_but, said, snapshot

from medaug.cohort.manifest import Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_images, read_label

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
    """The truth of one patient: voxels (columns, rows, slices), affine in RAS, values of the label; and its files."""

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
    """Columns, rows and slices [low, high) of the whole and of the core, which lies inside it."""
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
    """By run lengths, in place."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)


def shuffle_instances(index: int, dataset: Dataset) -> None:
    dataset.InstanceNumber = 1 + 7 * index % SHAPE[2]


def write_localiser(folder: Path, **tags: Any) -> None:
    """Three planes in one series, which is no volume, and which no rule wants."""
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
    """Eight patients with everything that is allowed, by PatientID."""
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
    """The findings of each PatientID, and of the cohort as a whole under its own name."""
    subjects, found = private(out)["subjects"], {}
    for finding in json.loads(report.read_text())["findings"]:
        who = subjects.get(finding["case"].rpartition("_")[0], finding["case"])
        found.setdefault(who, []).append(finding)
    return found


@pytest.mark.slow
def test_a_tree_becomes_the_nifti_that_it_means(stage, tmp_path):
    patients = write_tree(tmp_path / "tree")
    before = snapshot(tmp_path / "tree")
    done = stage("ingest", "root=tree", write_rules(tmp_path), "out=cohort.json", "report=report.json")
    assert done.returncode == 0, done.stderr
    assert_nothing_but(tmp_path, "tree", "rules.yaml", "cohort", "cohort.json", "cohort.private.json", "report.json")
    assert snapshot(tmp_path / "tree") == before
    manifest, known = Manifest.load(tmp_path / "cohort.json"), private(tmp_path / "cohort.json")
    assert manifest.modalities == ("T1", "FLAIR") and manifest.schema.labels == (
        (0, "background"),
        (1, "oedema"),
        (3, "core"),
    )
    assert sorted(known["subjects"].values()) == sorted(patients)
    for case in manifest.cases:
        patient = patients[known["subjects"][case.subject]]
        array, affine, dtype = read_images(manifest.image_paths(case))
        np.testing.assert_array_equal(array, [patient.t1, patient.flair])
        np.testing.assert_allclose(affine, patient.affine, atol=1e-4)
        assert dtype == np.int16
        if patient.label is None:
            assert case.label is None
            continue
        label = read_label(manifest.label_path(case))  # type: ignore[arg-type]
        np.testing.assert_array_equal(label.array, patient.label)
        np.testing.assert_array_equal(label.affine, affine)
    findings = by_patient(tmp_path / "report.json", tmp_path / "cohort.json")
    assert [f["code"] for f in findings.pop("PATIENT-6")] == ["dicom-label-missing"]
    (localiser,) = [f for f in findings.pop("PATIENT-7") if f["code"] != "dicom-label-names"]
    assert (localiser["code"], localiser["what"]) == ("dicom-not-used", "series 9: no rule matches")
    notes = {(f["severity"], f["code"]) for who, fs in findings.items() if who.startswith("PATIENT") for f in fs}
    assert notes <= {("note", "dicom-label-names")}
    assert {(f["severity"], f["code"]) for f in findings["cohort"]} == {
        ("note", "orientation-varies"),
        ("warning", "missing-label"),
        ("warning", "few-training-scans"),
        ("warning", "few-test-subjects"),
    }


def write_duplicate(path: Path, copy: Path) -> None:
    """The same image in a file of other bytes."""
    dataset = pydicom.dcmread(path)
    dataset.ImageComments = "exported twice"
    dataset.save_as(copy)


def _tilt(affine: np.ndarray) -> list[np.ndarray]:
    return [(LPS @ affine @ [0, 0.5 * index, index, 1])[:3] for index in range(SHAPE[2])]


def plant_all(root: Path) -> dict[str, tuple[str, str]]:
    """A patient for every fault, beside five sound ones; PatientID to the code and words of what must be found."""
    for index, label in ((0, "seg"), (1, "rtstruct"), (13, "labelmap"), (14, "ring"), (15, "nifti")):
        write_patient(root / f"sound {index}", index, label)
    write_patient(root / "gap", 2, None).images[0][4].unlink()
    write_patient(root / "duplicate", 3, None)
    write_duplicate(root / "duplicate" / "flair_3.dcm", root / "duplicate" / "flair_3 (1).dcm")
    for acquisition in (1, 2):
        write_series(
            root / "acquisitions",
            head(30 + acquisition),
            names=f"t1_{acquisition}_{{}}".format,
            PatientID="PATIENT-4",
            SeriesDescription=T1,
            AcquisitionNumber=acquisition,
            SOPInstanceUID=None,
            edit=lambda index, dataset, a=acquisition: setattr(dataset, "SOPInstanceUID", uid("acquisition", a, index)),
        )
    write_series(
        root / "acquisitions",
        head(33),
        number=2,
        names="flair{}".format,
        PatientID="PATIENT-4",
        SeriesDescription=FLAIR,
    )
    write_patient(root / "tilt", 5, None)
    write_series(
        root / "tilt",
        head(5),
        axial((1.0, 1.2, 3.0)),
        positions=_tilt(axial((1.0, 1.2, 3.0))),
        names="t1_{}.dcm".format,
        PatientID="PATIENT-5",
        SeriesDescription=T1,
    )
    turned = write_patient(root / "orientation", 6, None).images[1]
    for path in turned[:3]:
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
        dataset.save_as(path)
    write_patient(root / "grid", 7, None)
    write_series(
        root / "grid",
        head(7),
        axial((1.0, 1.5, 3.0)),
        number=2,
        names="flair_{}.dcm".format,
        PatientID="PATIENT-7",
        SeriesDescription=FLAIR,
    )
    write_patient(root / "two series", 8, None)
    write_series(
        root / "two series",
        head(8),
        axial((1.0, 1.2, 3.0)),
        number=3,
        names="again_{}".format,
        PatientID="PATIENT-8",
        SeriesDescription=f"{FLAIR} again",
    )
    for path in write_patient(root / "missing", 9, None).images[0]:
        path.unlink()
    cut = write_patient(root / "cut", 10, None).images[0][2]
    cut.write_bytes(cut.read_bytes()[:-100])
    outside = write_patient(root / "off grid", 11, "seg")
    moved = axial((1.0, 1.2, 3.0), (20.0, 30.0, -9.0))
    write_series(
        root / "off grid", outside.t1, moved, names="t1_{}.dcm".format, PatientID="PATIENT-11", SeriesDescription=T1
    )
    write_series(
        root / "off grid",
        outside.flair,
        moved,
        number=2,
        names="flair_{}.dcm".format,
        PatientID="PATIENT-11",
        SeriesDescription=FLAIR,
    )
    write_patient(root / "unknown name", 12, "seg", segments=("liver", "spleen"))
    (root / "garbage.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x01\x02\x03" * 20)
    (root / "empty.dcm").touch()
    return {
        "PATIENT-2": ("dicom-gap", "series 1: lacks 1 slice: 1 after slice 4"),
        "PATIENT-3": ("dicom-duplicate-slices", "series 2: holds the same image twice"),
        "PATIENT-4": ("dicom-two-acquisitions", "series 1: holds 2 acquisitions in one series"),
        "PATIENT-5": ("dicom-gantry-tilt", "series 1: is sheared"),
        "PATIENT-6": ("dicom-mixed-orientation", "series 2: mixes slices of different orientations"),
        "PATIENT-7": ("dicom-grid", "FLAIR (series 2)"),
        "PATIENT-8": ("dicom-two-series", "FLAIR is matched by series 2 and series 3"),
        "PATIENT-9": ("dicom-missing-modality", "no series matches T1"),
        "PATIENT-10": ("dicom-cut-short", "series 1: has 1 files that end before their pixels do"),
        "PATIENT-11": ("dicom-label", "series 99"),
        "PATIENT-12": ("dicom-label", 'no rule in structures matches any of its names ("liver", "spleen")'),
    }


@pytest.mark.slow
def test_every_planted_fault_is_found_by_name_in_one_pass(stage, tmp_path):
    expected = plant_all(tmp_path / "tree")
    before = snapshot(tmp_path / "tree")
    done = stage("ingest", "root=tree", write_rules(tmp_path), "out=cohort.json", "report=report.json")
    assert_refused(done, "ingest", "cohort.json: not written; correct the 13 error(s)")
    assert_nothing_but(tmp_path, "tree", "rules.yaml", "cohort.private.json", "report.json")
    assert snapshot(tmp_path / "tree") == before
    findings = by_patient(tmp_path / "report.json", tmp_path / "cohort.json")
    errors = {who: [f for f in found if f["severity"] == "error"] for who, found in findings.items()}
    unreadable = errors.pop("cohort")
    assert {f["code"] for f in unreadable} == {"dicom-unreadable"}
    assert any("zero bytes" in f["what"] for f in unreadable), unreadable
    assert {who: [f["code"] for f in found] for who, found in errors.items() if found} == {
        who: [code] for who, (code, _) in expected.items()
    }
    for who, (_, words) in expected.items():
        assert words in errors[who][0]["what"], errors[who]
    # The findings name no file, the private file does.
    files: dict[str, set[str]] = {}
    for problem in private(tmp_path / "cohort.json")["problems"]:
        files.setdefault(problem["code"], set()).update(problem["files"])
    assert files["dicom-unreadable"] == {str(tmp_path / "tree" / name) for name in ("garbage.dcm", "empty.dcm")}
    assert {Path(file).parent.name for file in files["dicom-duplicate-slices"]} == {"duplicate"}
    assert str(tmp_path) not in done.stderr and ".dcm" not in done.stderr and "PATIENT" not in done.stderr


@pytest.mark.slow
def test_what_the_user_asks_to_be_mended_is_mended(stage, tmp_path):
    patients = {f"PATIENT-{i}": write_patient(tmp_path / "tree" / str(i), i) for i in range(8)}
    lost = patients["PATIENT-2"]
    lost.images[1][4].unlink()
    larger, there = np.pad(patients["PATIENT-3"].flair, ((2, 3), (0, 0), (1, 0))), axial((1.0, 1.2, 3.0))
    there[:3, 3] = (there @ [-2, 0, -1, 1])[:3]  # the same voxels, and some around them
    write_series(
        tmp_path / "tree" / "3",
        larger,
        there,
        number=2,
        names="flair_{}.dcm".format,
        PatientID="PATIENT-3",
        SeriesDescription=FLAIR,
    )
    words = ("root=tree", write_rules(tmp_path), "report=report.json")
    done = stage("ingest", *words, "out=no.json")
    assert {line.split(": ")[0] for line in said(done) if "series" in line} == {"error"}
    assert_refused(done, "ingest", "correct the 2 error(s)")
    done = stage("ingest", *words, "out=cohort.json", "on_gap=resample", "on_grid=resample")
    assert done.returncode == 0, done.stderr
    manifest, known = Manifest.load(tmp_path / "cohort.json"), private(tmp_path / "cohort.json")
    flairs = {known["subjects"][c.subject]: read_images(manifest.image_paths(c))[0][1] for c in manifest.cases}
    expected = lost.flair.astype(np.float64)
    expected[:, :, 4] = (expected[:, :, 3] + expected[:, :, 5]) / 2
    assert np.abs(flairs["PATIENT-2"] - expected).max() <= 0.5
    np.testing.assert_array_equal(flairs["PATIENT-3"], patients["PATIENT-3"].flair)
    findings = by_patient(tmp_path / "report.json", tmp_path / "cohort.json")
    assert ("note", "dicom-gap") in {(f["severity"], f["code"]) for f in findings["PATIENT-2"]}


@pytest.mark.slow
def test_the_real_study_has_true_findings_only(stage, tmp_path, medaug_data):
    study = medaug_data / "dicom" / "PGBM-002"
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    names = ("T1pre", "T1post", "FLAIR", "T2")
    modalities = {name: {"SeriesDescription": name} for name in names}
    rules = {"modalities": modalities, "labels": {0: "background", 1: "tumour"}}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules, sort_keys=False))
    words = (f"root={study}", "rules=rules.yaml", "val_fraction=0", "test_fraction=0", "report=report.json")
    done = stage("ingest", *words, "out=cohort.json")
    assert done.returncode == 0, done.stderr
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [(f["severity"], f["code"]) for f in findings] == [
        ("note", "dicom-not-used"),
        ("warning", "dicom-label-missing"),
        ("warning", "missing-label"),
    ]
    assert findings[0]["what"] == "series without a number: no rule matches"
    (case,) = Manifest.load(tmp_path / "cohort.json").cases
    assert len(case.images) == 4 and case.label is None
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


@pytest.mark.slow
def test_what_is_asked_for_in_vain_leaves_nothing_behind(stage, tmp_path):
    for index in range(5):
        write_patient(tmp_path / "tree" / str(index), index)
    before = snapshot(tmp_path / "tree")
    words = ("root=tree", write_rules(tmp_path), "check=none")
    refused = {
        "folds=9": "correct the 1 error(s)",
        "out=tree/x.json": "out: is inside root",
        "private=tree/x.json": "is inside root",
        "report=tree/x.json": "is inside root",
        "on_gap=mend": "on_gap=mend: not one of refuse, resample",
        "workers=-1": "workers=-1",
    }
    for word, reason in refused.items():
        out = [] if word.startswith("out=") else ["out=cohort.json"]
        done = stage("ingest", *words, *out, word)
        assert_refused(done, "ingest", reason)
        assert ("folds=9: only 4 subjects are outside the test split" in done.stderr) == (word == "folds=9")
        (tmp_path / "cohort.private.json").unlink(missing_ok=True)
        assert_nothing_but(tmp_path, "tree", "rules.yaml")
    write_rules(tmp_path, label="nothing/*.nii.gz")
    done = stage("ingest", *words, "out=cohort.json")
    assert any(line.startswith("error: cohort: no file matches the glob `label`") for line in said(done))
    assert_refused(done, "ingest", "correct the 1 error(s)")
    assert snapshot(tmp_path / "tree") == before
