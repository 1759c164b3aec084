"""`python -m medaug.ingest` on DICOM trees: conversion, resampling, and arguments that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from dicom_files import axial, write_series
from dicom_tree import FLAIR, by_patient, private, write_patient, write_rules, write_tree
from ingest_files import assert_nothing_but, finding_lines, snapshot
from test_bad_input import assert_refused

from medaug.cohort.manifest import Manifest
from medaug.imaging.reading import read_images, read_label


@pytest.mark.slow
def test_a_tree_is_converted_to_nifti(stage, tmp_path):
    patients = write_tree(tmp_path / "tree")
    before = snapshot(tmp_path / "tree")
    done = stage("ingest", "root=tree", write_rules(tmp_path), "out=cohort.json", "report=report.json", "workers=0")
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


@pytest.mark.slow
def test_gaps_and_grids_are_resampled_on_request(stage, tmp_path):
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
    assert {line.split(": ")[0] for line in finding_lines(done) if "series" in line} == {"error"}
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
def test_the_real_study_has_only_true_findings(stage, tmp_path, medaug_data):
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
def test_refused_arguments_leave_no_files(stage, tmp_path):
    for index in range(5):
        write_patient(tmp_path / "tree" / str(index), index)
    before = snapshot(tmp_path / "tree")
    words = ("root=tree", write_rules(tmp_path), "check=none")
    refused = {
        "folds=9": "correct the 1 error(s)",
        "out=tree/x.json": "out: is inside root",
        "private=tree/x.json": "is inside root",
        "report=tree/x.json": "is inside root",
        "on_gap=fill": "on_gap=fill: not one of refuse, resample",
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
    assert any(line.startswith("error: cohort: no file matches the glob `label`") for line in finding_lines(done))
    assert_refused(done, "ingest", "correct the 1 error(s)")
    assert snapshot(tmp_path / "tree") == before
