"""`python -m medaug.ingest` on folders of NIfTI, as a user types it."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path

import faults
import numpy as np
import planted
import pytest
import yaml
from test_bad_input import assert_refused

from medaug.cohort.manifest import Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_label, read_volume

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
PAIRS = ("images=images/*.nii.gz", "labels=labels/*.nii.gz", "classes=[background,core,oedema,air,rim]")
QUICK = ("check=none", "workers=1")
BRATS_2020 = ("t1", "t1ce", "t2", "flair", "seg")
BRATS_2023 = ("t1n", "t1c", "t2w", "t2f", "seg")


def write_brats(root: Path, names: list[str], separator: str = "_", parts: tuple[str, ...] = BRATS_2020) -> Path:
    for index, name in enumerate(names):
        scans = [faults.scan(10 * index), faults.scan(10 * index + 1)]
        arrays = [scans[0]["t1"], scans[1]["t1"], scans[0]["t2"], scans[1]["t2"], scans[0]["seg"]]
        for part, array in zip(parts, arrays, strict=True):
            write_volume(root / name / f"{name}{separator}{part}.nii.gz", array, faults.AFFINE)
    return root


def write_pairs(root: Path, num: int = 6, names: str = "case_{:02d}", label: str = "{}.nii.gz") -> Path:
    for index in range(num):
        made, name = faults.scan(index), names.format(index)
        write_volume(root / "images" / f"{name}.nii.gz", made["t1"], faults.AFFINE)
        write_volume(root / "labels" / label.format(name), made["seg"], faults.AFFINE)
    return root


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of everything below a folder."""
    files = [folder, *folder.rglob("*")]
    return {str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in files}


def said(done: Done) -> list[str]:
    """The findings on standard error, in their order, without the time of day."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stderr.splitlines()]
    return [line for line in lines if line.startswith(("error: ", "warning: ", "note: "))]


def splits(manifest: Manifest) -> dict[str, str]:
    return {case.name: case.split for case in manifest.cases}


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def assert_nothing_but(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.fixture
def ingested(stage, tmp_path) -> Callable[..., Manifest]:
    """Ingest into `out`, which has to succeed, and load the manifest."""

    def run(*words: str, out: str = "cohort.json") -> Manifest:
        done = stage("ingest", *words, f"out={out}")
        assert done.returncode == 0, done.stderr
        return Manifest.load(tmp_path / out)

    return run


@pytest.mark.slow
def test_labels_that_the_names_propose_have_to_be_confirmed(stage, ingested, tmp_path):
    before = snapshot(write_brats(tmp_path / "data", [f"BraTS20_Training_{i:03d}" for i in range(6)]))
    proposal = "0 background, 1 necrotic core, 2 oedema, 4 enhancing tumour; confirm them with accept_labels=true"
    assert_refused(stage("ingest", "root=data", "out=cohort.json"), "ingest", "layout brats2020", proposal, "rules=")
    assert_nothing_but(tmp_path, "data")
    confirmed = ingested("root=data", "accept_labels=true", *QUICK)
    assert confirmed.modalities == ("T1", "T1ce", "T2", "FLAIR")
    assert dict(confirmed.schema.labels)[4] == "enhancing tumour" and len(confirmed.cases) == 6
    assert dict(confirmed.schema.regions)["tumour core"] == (1, 4)
    (tmp_path / "rules.yaml").write_text("labels: {0: background, 1: dead, 4: alive}\n")
    own = ingested("root=data", "rules=rules.yaml", *QUICK, out="own.json")
    assert own.schema.labels == ((0, "background"), (1, "dead"), (4, "alive")) and not own.schema.regions
    assert own.cases == confirmed.cases and snapshot(tmp_path / "data") == before


@pytest.mark.slow
def test_two_challenges_with_the_same_names_are_not_guessed_apart(stage, ingested, tmp_path):
    names = [f"BraTS-GLI-{person:05d}-{visit}" for person in range(4) for visit in (100, 101)]
    write_brats(tmp_path / "data", names, "-", BRATS_2023)
    done = stage("ingest", "root=data", "out=cohort.json", "accept_labels=true")
    assert_refused(done, "ingest", "layout=brats2023 or layout=brats2024", "4 resection cavity")
    for layout, last in (("brats2023", (3, "enhancing tumour")), ("brats2024", (4, "resection cavity"))):
        done = stage("ingest", "root=data", "out=x.json", f"layout={layout}", *QUICK)
        assert_refused(done, "ingest", f"{last[0]} {last[1]}; confirm")
        manifest = ingested("root=data", f"layout={layout}", "accept_labels=true", *QUICK, out=f"{layout}.json")
        assert manifest.schema.labels[-1] == last
        assert {case.name: case.subject for case in manifest.cases} == {name: name[:-4] for name in names}
        assert len({(case.subject, case.split) for case in manifest.cases}) == 4


@pytest.mark.slow
def test_pairs_by_the_command_line_and_by_rules(stage, ingested, tmp_path):
    data = write_pairs(tmp_path / "data", 7, "scan_{:02d}_t1", label="mask_{}.nii.gz")
    pattern = r"case_pattern=(scan_\d+)"
    manifest = ingested("root=data", *PAIRS, pattern, "name=mine")
    assert manifest.name == "mine" and manifest.modalities == ("image",)
    assert [case.name for case in manifest.cases] == [f"scan_{i:02d}" for i in range(7)]
    assert manifest.cases[0].label == "labels/mask_scan_00_t1.nii.gz"
    assert manifest.schema.names == ("background", "core", "oedema", "air", "rim")
    done = stage("ingest", "root=data", *PAIRS[:2], pattern, "layout=pairs", "out=x.json")
    assert_refused(done, "ingest", "the label values have no names", "never guessed")
    for index in range(7):
        write_volume(data / "images" / f"scan_{index:02d}_t2.nii.gz", faults.scan(index)["t2"], faults.AFFINE)
    rules = {
        "modalities": {"T2": "images/*_t2.nii.gz", "T1": "images/*_t1.nii.gz"},
        "label": "labels/*",
        "case": r"(scan_\d+)",
        "labels": {0: "background", 1: "core", 4: "rim"},
        "regions": {"whole": [1, 4]},
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules, sort_keys=False))
    two = ingested("root=data", "rules=rules.yaml", out="two.json")
    assert two.modalities == ("T2", "T1") and dict(two.schema.regions) == {"whole": (1, 4)}
    assert two.cases[3].images == ("images/scan_03_t2.nii.gz", "images/scan_03_t1.nii.gz")
    (data / "images" / "scan_03_t1.nii.gz").unlink()
    done = stage("ingest", "root=data", "rules=rules.yaml", "out=three.json")
    assert any(line.startswith("error: scan_03: ") and "T1 of case scan_03 is missing" in line for line in said(done))
    assert_refused(done, "ingest", "three.json: not written")


def _voxels(manifest: Manifest) -> dict[str, Mapping[str, np.ndarray]]:
    """Class names and where each is, of all labels: values may differ between two manifests, meanings may not."""
    found = {}
    for case in manifest.cases:
        indices = manifest.schema.to_indices(read_label(manifest.label_path(case)).array, case.name)
        found[case.name] = {n: indices == i for i, n in enumerate(manifest.schema.names) if (indices == i).any()}
    return found


@pytest.mark.slow
def test_nnunet_in_and_out_and_in_again(stage, ingested, tmp_path):
    data = tmp_path / "Dataset501_Toy"
    for index in range(8):
        made = faults.scan(index)
        for channel, part in enumerate(("t1", "t2")):
            write_volume(data / "imagesTr" / f"c{index}_{channel:04d}.nii.gz", made[part], faults.AFFINE)
        label = np.where(made["seg"] == 4, 2, made["seg"])
        write_volume(data / "labelsTr" / f"c{index}.nii.gz", label, faults.AFFINE)
    dataset = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "rim": 2},
        "regions_class_order": [1, 2],
        "numTraining": 8,
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(dataset))
    write_csv(tmp_path / "people.csv", ("case", "subject"), *((f"c{i}", f"person{i // 2}") for i in range(8)))
    before = snapshot(data)
    first = ingested(f"root={data}", "subjects=people.csv", "val_fraction=0.25", "test_fraction=0")
    assert dict(first.schema.regions)["whole"] == (1, 2)
    done = stage("export", "manifest=cohort.json", "format=nnunet", "out=out")
    assert done.returncode == 0, done.stderr
    again = ingested("root=out", "splits=out/splits_final.json", out="again.json")
    assert [(c.name, c.subject, c.split) for c in again.cases] == [(c.name, c.subject, c.split) for c in first.cases]
    assert again.modalities == first.modalities and again.schema.regions == first.schema.regions
    one, two = _voxels(first), _voxels(again)
    for name, classes in one.items():
        assert classes.keys() == two[name].keys()
        assert all(np.array_equal(mask, two[name][label]) for label, mask in classes.items())
        images = zip(*[m.image_paths(next(c for c in m.cases if c.name == name)) for m in (first, again)], strict=True)
        assert all(np.array_equal(read_volume(a).array, read_volume(b).array) for a, b in images)
    assert snapshot(data) == before


@pytest.mark.slow
def test_subjects_and_splits_are_brought_along(stage, ingested, tmp_path):
    write_pairs(tmp_path / "data", 8)
    names = [f"case_{i:02d}" for i in range(8)]
    subjects = {name: f"person {i // 2}" for i, name in enumerate(names)}
    write_csv(tmp_path / "people.csv", ("Case", "Subject"), *subjects.items())
    wanted = {name: ("train", "train", "val", "test")[i // 2] for i, name in enumerate(names)}
    write_csv(tmp_path / "splits.csv", ("case", "split"), *wanted.items())
    words = ("root=data", *PAIRS, *QUICK)
    manifest = ingested(*words, "subjects=people.csv", "splits=splits.csv")
    assert splits(manifest) == wanted and {c.name: c.subject for c in manifest.cases} == subjects
    by_person = [(f"person {i}", split) for i, split in enumerate(("val", "train", "train", "train"))]
    write_csv(tmp_path / "persons.csv", ("subject", "split"), *by_person)
    manifest = ingested(*words, "subjects=people.csv", "splits=persons.csv", out="persons.json")
    assert splits(manifest) == {n: "val" if i < 2 else "train" for i, n in enumerate(names)}
    folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:6], "val": names[6:]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    manifest = ingested(*words, "splits=splits_final.json", "splits_fold=1", out="folds.json")
    assert splits(manifest) == {name: "val" if name in names[6:] else "train" for name in names}

    write_csv(tmp_path / "torn.csv", ("case", "split"), *(wanted | {"case_01": "val"}).items())
    done = stage("ingest", *words, "subjects=people.csv", "splits=torn.csv", "out=torn.json")
    (line,) = said(done)
    assert line.startswith("error: data: ") and "subject person 0 is in two splits" in line
    assert_refused(done, "ingest", "torn.json: not written; correct the 1 error(s)")
    write_csv(tmp_path / "short.csv", ("case", "subject"), *list(subjects.items())[1:])
    done = stage("ingest", *words, "subjects=short.csv", "out=short.json")
    assert_refused(done, "ingest", "short.csv: case case_00 is not in this file")
    assert not (tmp_path / "torn.json").exists() and not (tmp_path / "short.json").exists()


@pytest.mark.slow
def test_folds_beside_the_manifest(stage, ingested, tmp_path):
    write_pairs(tmp_path / "data", 9)
    (tmp_path / "data" / "labels" / "case_04.nii.gz").unlink()
    words = ("root=data", *PAIRS, *QUICK, "test_fraction=0.2")
    manifest = ingested(*words, "folds=3")
    assert_nothing_but(tmp_path, "data", "cohort.json", "cohort_splits_final.json")
    folds = json.loads((tmp_path / "cohort_splits_final.json").read_text())
    rest = {case.name for case in manifest.cases if case.split != "test" and case.label is not None}
    assert len(folds) == 3 and all(set(fold["train"]) | set(fold["val"]) == rest for fold in folds)
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(rest)
    assert all(not set(fold["train"]) & set(fold["val"]) for fold in folds)
    (tmp_path / "taken_splits_final.json").write_text("mine")
    assert_refused(stage("ingest", *words, "folds=3", "out=taken.json"), "ingest", "taken_splits_final.json")
    assert (tmp_path / "taken_splits_final.json").read_text() == "mine" and not (tmp_path / "taken.json").exists()
    # Those of an ingest that was killed before it wrote the manifest are the same.
    (tmp_path / "taken_splits_final.json").write_bytes((tmp_path / "cohort_splits_final.json").read_bytes())
    assert ingested(*words, "folds=3", out="taken.json").cases == manifest.cases
    for name in ("taken.json", "taken_splits_final.json"):
        (tmp_path / name).unlink()
    done = stage("ingest", *words, "folds=9", "out=many.json")
    assert_refused(done, "ingest", "many.json: not written")
    assert any("folds=9: only 7 subjects are outside the test split" in line for line in said(done))
    assert_nothing_but(tmp_path, "data", "cohort.json", "cohort_splits_final.json")


@pytest.fixture
def faulty(tmp_path) -> Path:
    """Pairs of which four have a fault each, at the least one of every severity."""
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
def test_the_report_says_what_standard_error_says(stage, tmp_path, faulty):
    before = snapshot(faulty)
    done = stage("ingest", "root=data", *PAIRS, "out=cohort.json", "report=report.json")
    assert_refused(done, "ingest", "cohort.json: not written; correct the 3 error(s) listed above")
    assert_nothing_but(tmp_path, "data", "report.json")  # no manifest, no temporary file
    assert snapshot(faulty) == before
    report = json.loads((tmp_path / "report.json").read_text())
    findings = report["findings"]
    for finding in findings:
        place = "" if finding["path"] is None else f"{finding['path']}: "
        line = "{severity}: {case}: {place}{what}; {remedy}".format(place=place, **finding)
        assert line in said(done)
    assert len(said(done)) == len(findings)
    worst_last = [["note", "warning", "error"].index(line.partition(":")[0]) for line in said(done)]
    assert worst_last == sorted(worst_last)
    assert len(said(done)) == len(set(said(done)))
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
    for line in said(done):
        assert re.fullmatch(r"(error|warning|note): \S+: .+; .+", line)


@pytest.mark.slow
def test_warnings_do_not_stop_and_how_deep_to_look_is_the_users_choice(stage, ingested, tmp_path, faulty):
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
def test_the_experiment_says_what_the_cohort_is_meant_for(stage, tmp_path):
    write_pairs(tmp_path / "data", 6)
    words = ("experiment=hippocampus", "root=data", *PAIRS, "check=headers", "out=x.json")
    done = stage("ingest", *words, "data.labelled=500")
    errors = [line for line in said(done) if line.startswith("error")]
    assert len(errors) == 1 and "training subjects have a label, but data.labelled is 500" in errors[0]
    assert_refused(done, "ingest", "not written")
    assert stage("ingest", *words, "data.labelled=3").returncode == 0


@pytest.mark.slow
def test_a_window_on_values_that_are_no_hounsfield_units(stage, tmp_path):
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
def test_a_misspelt_key_names_the_nearest(stage, tmp_path):
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
def test_on_a_terminal_the_findings_are_a_table(tmp_path, faulty):
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
    except OSError:  # Linux says so at the other side's end
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
def test_two_parts_of_one_scan_under_two_names(stage, tmp_path):
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
def test_training_sees_only_as_many_labels_as_it_was_told(stage, tmp_path):
    done = stage("train", "experiment=demo", "preset=smoke", "data.labelled=3", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "runs" / "demo" / "train" / "manifest.json")
    training = manifest.split("train")
    assert len(training) > 3 and len({c.subject for c in training if c.label is not None}) == 3
    assert all(case.label is not None for case in manifest.cases if case.split != "train")
    done = stage("train", "experiment=demo", "preset=smoke", "data.labelled=50", home=tmp_path / "runs")
    assert_refused(done, "train", "labelled=50", "choose 1 to")


@pytest.mark.slow
def test_too_few_subjects_are_said_before_anything_is_read(stage, tmp_path):
    write_pairs(tmp_path / "data", 2)
    for file in (tmp_path / "data/images").iterdir():
        file.write_bytes(b"no scan")  # would be found, had it been looked at
    done = stage("ingest", "root=data", "out=cohort.json", *PAIRS)
    assert_refused(done, "ingest", "not written; correct the 1 error(s)")
    (line,) = said(done)
    assert line.startswith("error: data: splits: 2 subjects are too few for 1 validation (val_fraction=0.1) and 1 test")
    assert "subjects (test_fraction=0.2)" in line and line.endswith("set val_fraction or test_fraction to 0")
    assert_nothing_but(tmp_path, "data")


@pytest.mark.slow
def test_causes_are_said_before_what_follows_from_them(stage, tmp_path):
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
    errors = [line for line in said(done) if line.startswith("error: ")]
    assert errors[-1].startswith("error: data: no case is left; correct the errors above")
    assert len(errors) == 5 and sum("is missing" in line for line in errors) == 2
