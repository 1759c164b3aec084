"""`python -m medaug.ingest` on folders of NIfTI: findings, their report, and arguments that are refused."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import faults
import numpy as np
import planted
import pytest
from ingest_files import PAIRS, ROOT, assert_nothing_but, finding_lines, snapshot, write_pairs
from test_bad_input import assert_refused

from medaug.cohort.manifest import Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volume


@pytest.fixture
def faulty(tmp_path) -> Path:
    """Twelve pairs, four of which have one fault each."""
    data = write_pairs(tmp_path / "data", 12)
    for index, name in ((1, "image cut off"), (2, "NaN"), (3, "label shifted"), (4, "nothing labelled")):
        fault = planted.FAULTS[name]
        root = tmp_path / "planted"
        case = planted.plant(root, f"case_{index:02d}", fault._replace(plant=lambda r, c: None), index)
        (root / f"case_{index:02d}_t2.nii.gz").write_bytes((root / f"case_{index:02d}_t1.nii.gz").read_bytes())
        fault.plant(root, case)
        image = "t2" if name == "NaN" else "t1"
        (root / f"case_{index:02d}_{image}.nii.gz").replace(data / "images" / f"case_{index:02d}.nii.gz")
        (root / f"case_{index:02d}_seg.nii.gz").replace(data / "labels" / f"case_{index:02d}.nii.gz")
    for path in (tmp_path / "planted").iterdir():
        path.unlink()
    (tmp_path / "planted").rmdir()
    return data


@pytest.mark.slow
def test_report_and_standard_error_agree(stage, tmp_path, faulty):
    before = snapshot(faulty)
    done = stage("ingest", "root=data", *PAIRS, "out=cohort.json", "report=report.json", "workers=0")
    assert_refused(done, "ingest", "cohort.json: not written; correct the 3 error(s) listed above")
    assert_nothing_but(tmp_path, "data", "report.json")  # no manifest, no temporary file
    assert snapshot(faulty) == before
    report = json.loads((tmp_path / "report.json").read_text())
    findings = report["findings"]
    for finding in findings:
        place = "" if finding["path"] is None else f"{finding['path']}: "
        line = "{severity}: {case}: {place}{what}; {remedy}".format(place=place, **finding)
        assert line in finding_lines(done)
    assert len(finding_lines(done)) == len(findings)
    worst_last = [["note", "warning", "error"].index(line.partition(":")[0]) for line in finding_lines(done)]
    assert worst_last == sorted(worst_last)
    assert len(finding_lines(done)) == len(set(finding_lines(done)))
    for severity in ("error", "warning", "note"):
        assert report[f"{severity}s"] == sum(finding["severity"] == severity for finding in findings)
    found = {(f["case"], f["severity"], f["code"]) for f in findings if f["case"] != "data"}
    assert found == {
        ("case_01", "error", "truncated"),
        ("case_02", "error", "not-finite"),
        ("case_03", "error", "affine-differs"),
        ("case_04", "warning", "empty-label"),
    }
    assert report["cases"].keys() == {f"case_{i:02d}" for i in range(12)}
    assert report["cases"]["case_00"]["shape"] == list(faults.SHAPE)
    for line in finding_lines(done):
        assert re.fullmatch(r"(error|warning|note): \S+: .+; .+", line)


@pytest.mark.slow
def test_warnings_do_not_prevent_the_manifest_and_check_sets_the_depth(stage, ingested, tmp_path, faulty):
    # The same voxels in another type: files of one content are found from headers as well.
    copy = read_volume(faulty / "images" / "case_00.nii.gz")
    write_volume(faulty / "images" / "case_01.nii.gz", copy.array.astype("f4"), copy.affine)
    (faulty / "labels" / "case_03.nii.gz").write_bytes((faulty / "labels" / "case_00.nii.gz").read_bytes())
    words = ("root=data", *PAIRS, "report={}.json", "out={}_cohort.json")
    done = {
        check: stage("ingest", *(word.format(check) for word in words), f"check={check}")
        for check in ("voxels", "headers", "none")
    }
    assert {check: one.returncode for check, one in done.items()} == {"voxels": 2, "headers": 0, "none": 0}
    codes = {c: {f["code"] for f in json.loads((tmp_path / f"{c}.json").read_text())["findings"]} for c in done}
    assert {"not-finite", "same-content", "empty-label"} <= codes["voxels"]
    assert (
        codes["headers"] == {"few-training-scans", "few-test-subjects", "subjects-not-compared"} and not codes["none"]
    )
    assert "warning: data: " in done["headers"].stderr
    facts = json.loads((tmp_path / "headers.json").read_text())["cases"]
    assert facts["case_02"]["spacing"] == [2, 2, 2.5]
    assert Manifest.load(tmp_path / "none_cohort.json").cases == Manifest.load(tmp_path / "headers_cohort.json").cases
    done = stage("ingest", "root=data", *PAIRS, "out=x.json", "check=all")
    assert_refused(done, "ingest", "check=all: not one of voxels, headers, none")


@pytest.mark.slow
def test_the_cohort_is_checked_for_the_options_of_the_experiment(stage, tmp_path):
    write_pairs(tmp_path / "data", 6)
    words = ("experiment=hippocampus", "root=data", *PAIRS, "check=headers", "out=x.json")
    done = stage("ingest", *words, "data.labelled=500")
    errors = [line for line in finding_lines(done) if line.startswith("error")]
    assert len(errors) == 1 and "training subjects have a label, but data.labelled is 500" in errors[0]
    assert_refused(done, "ingest", "not written")
    assert stage("ingest", *words, "data.labelled=3").returncode == 0


@pytest.mark.slow
def test_a_ct_window_on_values_that_are_not_hounsfield_units(stage, tmp_path):
    write_pairs(tmp_path / "data", 6)
    words = ("root=data", *PAIRS, "data.intensity=window", "report=r.json")
    done = stage("ingest", *words, "data.window=[-1000,1000]", "out=x.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert {f["case"] for f in report["findings"] if f["code"] == "ct-not-hounsfield"} == {
        f"case_{i:02d}" for i in range(6)
    }
    assert "none below 0, although air is -1000; add the rescale intercept" in done.stderr
    for index in range(6):
        path = tmp_path / "data" / "images" / f"case_{index:02d}.nii.gz"
        write_volume(path, np.clip(read_volume(path).array - 1000, -1000, 1500), faults.AFFINE)
    done = stage("ingest", *words, "data.window=[-1000,1000]", "out=y.json")
    assert done.returncode == 0, done.stderr
    assert "ct-not-hounsfield" not in (tmp_path / "r.json").read_text()
    done = stage("ingest", "root=data", *PAIRS, "data.intensity=window", "out=z.json")
    assert_refused(done, "ingest", "data.window")


@pytest.mark.slow
def test_bad_arguments_are_refused_in_one_line(stage, tmp_path):
    done = stage("ingest", "root=data", "out=x.json", "acept_labels=true")
    assert_refused(done, "ingest", "acept_labels", "did you mean accept_labels")
    assert_refused(stage("ingest", "root=data", "out=x.json"), "ingest", "data: no such folder; check root")
    assert_refused(stage("ingest", "root=data"), "ingest", "root=DIR and out=FILE.json are needed")
    assert_refused(stage("ingest", "root=data", "out=x.txt"), "ingest", "a manifest is a .json file")
    (tmp_path / "x.json").write_text("mine")
    assert_refused(stage("ingest", "root=data", "out=x.json"), "ingest", "exists already")
    done = stage("ingest", "root=data", "out=y.json", "report=x.json")
    assert_refused(done, "ingest", "report=x.json: exists and is not a report of medaug.ingest")
    assert (tmp_path / "x.json").read_text() == "mine"
    assert_nothing_but(tmp_path, "x.json")


@pytest.mark.slow
def test_findings_are_a_table_on_a_terminal(tmp_path, faulty):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    command = [sys.executable, "-m", "medaug.ingest", "root=data", *PAIRS, "out=x.json", "report=r.json"]
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    env |= {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux raises this when the other side closes
        pass
    os.close(ours)
    assert process.wait(60) == 2
    assert process.stdout is not None and process.stdout.read() == b""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert "severity" in text and "remedy" in text and "checking" in text  # the table's head, the progress bar
    firsts = [row[:2] for row in rows if len(row) == 4 and row[0]]
    report = json.loads((tmp_path / "r.json").read_text())
    order = ("error", "warning", "note")
    assert [row[0] for row in firsts] == sorted((f["severity"] for f in report["findings"]), key=order.index)
    assert {tuple(row) for row in firsts} == {(f["severity"], f["case"]) for f in report["findings"]}
    assert text.rstrip().splitlines()[-1].startswith("medaug ingest: error: x.json: not written")


@pytest.mark.slow
def test_two_crops_of_one_scan_under_two_names_are_found(stage, tmp_path):
    for index in range(12):
        made = faults.scan(index)
        scaled = (made["t1"] * np.float32(0.0137 + 0.00171 * index)).astype(np.float32)
        parts = {"a": slice(0, 18), "b": slice(6, 24)} if index == 5 else {"a": slice(None)}
        for part, where in parts.items():
            name = f"p{index:02d}_{part}.nii.gz"
            affine = faults.AFFINE.copy()
            affine[:3, 3] += affine[:3, 0] * (where.start or 0)
            write_volume(tmp_path / "data" / "images" / name, scaled[where], affine)
            write_volume(tmp_path / "data" / "labels" / name, made["seg"][where], affine)
    words = ("root=data", *PAIRS, "report=r.json")

    def twins(out: str, *more: str) -> list[tuple[str, str]]:
        done = stage("ingest", *words, f"out={out}.json", *more)
        findings = json.loads((tmp_path / "r.json").read_text())["findings"]
        found = [f for f in findings if f["code"] == "likely-same-subject"]
        assert done.returncode == (2 if any(f["severity"] == "error" for f in findings) else 0), done.stderr
        assert (tmp_path / f"{out}.json").exists() == (done.returncode == 0)
        assert all("likely the same subject as p05_" in f["what"] for f in found)
        return [(f["case"], f["severity"]) for f in found]

    (found,) = twins("plain")
    assert found in {("p05_a", "error"), ("p05_b", "error")}
    assert twins("ruled", r"subject_pattern=(p\d+)_") == []
    assert twins("meant", "subject_pattern=(.*)") == [(found[0], "warning")]
    cases = Manifest.load(tmp_path / "ruled.json").cases
    assert len({case.split for case in cases if case.subject == "p05"}) == 1


@pytest.mark.slow
def test_training_uses_the_requested_number_of_labels(stage, tmp_path):
    done = stage("train", "experiment=demo", "preset=smoke", "data.labelled=3", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "runs" / "demo" / "train" / "manifest.json")
    training = manifest.split("train")
    assert len(training) > 3 and len({c.subject for c in training if c.label is not None}) == 3
    assert all(case.label is not None for case in manifest.cases if case.split != "train")
    done = stage("train", "experiment=demo", "preset=smoke", "data.labelled=50", home=tmp_path / "runs")
    assert_refused(done, "train", "labelled=50", "choose 1 to")


@pytest.mark.slow
def test_too_few_subjects_are_reported_before_files_are_read(stage, tmp_path):
    write_pairs(tmp_path / "data", 2)
    for file in (tmp_path / "data/images").iterdir():
        file.write_bytes(b"no scan")  # would be reported if the files were read
    done = stage("ingest", "root=data", "out=cohort.json", *PAIRS)
    assert_refused(done, "ingest", "not written; correct the 1 error(s)")
    (line,) = finding_lines(done)
    assert line.startswith("error: data: splits: 2 subjects are too few for 1 validation (val_fraction=0.1) and 1 test")
    assert "subjects (test_fraction=0.2)" in line and line.endswith("set val_fraction or test_fraction to 0")
    assert_nothing_but(tmp_path, "data")


@pytest.mark.slow
def test_causes_are_reported_before_their_consequences(stage, tmp_path):
    write_pairs(tmp_path / "data", 2)
    for file in (tmp_path / "data/images").iterdir():
        file.rename(file.with_name(f"other_{file.name}"))
    rules = "rules.yaml"
    (tmp_path / rules).write_text(
        "modalities: {T1: 'images/*', T2: 'images/*_01*'}\ncase: '([^/]*).nii'\nlabel: 'labels/*'\n"
        "labels: {0: background, 1: core, 4: rim}\nremap: {}\n".replace("'images/*'", "'images/*_00*'")
    )
    done = stage("ingest", "root=data", "out=cohort.json", f"rules={rules}")
    assert_refused(done, "ingest", "not written")
    errors = [line for line in finding_lines(done) if line.startswith("error: ")]
    assert errors[-1].startswith("error: data: no case is left; correct the errors above")
    assert len(errors) == 5 and sum("is missing" in line for line in errors) == 2
