"""`python -m medaug.ingest` on a DICOM tree with one patient for every kind of fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import LPS, axial, uid, write_series
from dicom_tree import (
    FLAIR,
    SHAPE,
    T1,
    by_patient,
    head,
    private,
    write_duplicate,
    write_patient,
    write_rules,
)
from ingest_files import assert_nothing_but, snapshot
from test_bad_input import assert_refused


def _tilt(affine: np.ndarray) -> list[np.ndarray]:
    return [(LPS @ affine @ [0, 0.5 * index, index, 1])[:3] for index in range(SHAPE[2])]


def plant_all(root: Path) -> dict[str, tuple[str, str]]:
    """Write five good patients and one for every fault; return code and words of the expected finding by PatientID."""
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
def test_every_planted_fault_is_found_in_one_pass(stage, tmp_path):
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
