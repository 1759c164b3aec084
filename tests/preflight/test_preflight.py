"""Preflight: no finding on good data, each planted fault found by case, kind, severity and words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from faults import (
    AFFINE,
    NO_FORMS,
    SCHEMA,
    SHAPE,
    one_by_one,
    path_of,
    scan,
    spoil_header,
    write_case,
    write_good_cohort,
)
from planted import FAULTS, only, plant

from medaug import preflight
from medaug.cohort import Case, LabelSchema, Manifest
from medaug.imaging.nifti import write_volume
from medaug.isolation import Failure
from medaug.phantoms.head import MODALITIES, write_cohort
from medaug.preflight import CaseFacts, Expectations, Report, check, report_json

GRID = {"not-orthogonal", "sform-qform-differ", "absurd-spacing", "absurd-extent", "single-slice"}
GRID |= {"no-orientation", "voxel-size-guessed", "pixdim-differs", "qform-not-rotation"}
FROM_HEADERS = GRID | {
    *("missing-file", "empty-file", "wrong-format", "unreadable", "not-3d", "wrong-type", "bad-affine"),
    *("missing-modality", "too-many-volumes"),
    *("shape-differs", "orientation-differs", "spacing-differs", "affine-differs"),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A cohort with one case for every fault."""
    root = tmp_path_factory.mktemp("planted")
    manifest = write_good_cohort(root)
    cases = [plant(root, name, fault, 100 + index) for index, (name, fault) in enumerate(FAULTS.items())]
    return replace(manifest, cases=(*manifest.cases, *cases))


@pytest.fixture(scope="module")
def report(planted: Manifest) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "isolated", one_by_one)
        return check(planted)


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


@pytest.mark.slow
def test_good_data_have_no_finding(good: Manifest, in_process: None) -> None:
    report = check(good)
    assert report.findings == ()
    facts = report.facts["good_03"]
    assert (facts.shape, facts.spacing, facts.orientation) == (SHAPE, (2, 2, 2.5), "RAS")
    assert facts.classes == {"background", "core", "rim"}
    assert check(good, "headers").findings == ()


def test_corners_within_tolerance_are_one_grid(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path, 2)
    for shift in (9e-4, -9e-4):
        affine = AFFINE.copy()
        affine[0, 3] += shift
        write_volume(path_of(tmp_path, manifest.cases[0], "seg"), scan(0)["seg"], affine)
        assert check(manifest).findings == ()


def test_a_label_without_sform_and_qform_is_reported_with_the_cause(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path, 2)
    spoil_header(*NO_FORMS, part="seg")(tmp_path, manifest.cases[1])
    different, cause = check(manifest).findings
    assert (different.code, cause.code, cause.severity) == ("orientation-differs", "no-orientation", "warning")
    assert different.case == cause.case == "good_01" and cause.what.startswith("good_01_seg.nii.gz has neither")


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_the_one_finding_of_its_case(report: Report, name: str) -> None:
    fault = FAULTS[name]
    finding, *further = [finding for finding in report.findings if finding.case == name] or [None]
    assert finding is not None and not further
    assert (finding.code, finding.severity) == (fault.code, fault.severity)
    assert fault.words in finding.statement
    assert finding.remedy and "\n" not in str(finding)


def test_faults_of_some_cases_do_not_affect_the_others(report: Report) -> None:
    others = [f for f in report.findings if f.case not in FAULTS]
    assert {f.case for f in others} == {"planted"}
    notes = dict.fromkeys(("spacing-varies", "shape-varies", "orientation-varies", "class-in-some"), "note")
    assert {f.code: f.severity for f in others} == notes | {"few-test-subjects": "warning"}


@pytest.mark.slow
def test_findings_come_in_the_order_of_cases_whatever_the_number_of_workers(planted: Manifest, report: Report) -> None:
    assert check(planted, workers=2).findings == report.findings
    names = [case.name for case in planted.cases]
    alone = [names.index(f.case) for f in report.findings if f.code in FROM_HEADERS]
    assert alone == sorted(alone)


@pytest.mark.slow
def test_headers_give_all_findings_that_need_no_voxels(planted: Manifest, in_process: None) -> None:
    found = {f.case: (f.code, f.severity) for f in check(planted, "headers").findings if f.case in FAULTS}
    also = {"a scale that is none", "MetaImage cut off", "NRRD of another kind"}
    expected = {name: fault[:2] for name, fault in FAULTS.items() if fault.code in FROM_HEADERS or name in also}
    assert found == expected


def test_a_damaged_file_hides_no_fault_of_the_others(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path, 3)
    case = manifest.cases[1]
    path_of(tmp_path, case, "t1").write_bytes(b"")
    t2, seg = scan(1)["t2"].astype("f4"), scan(1)["seg"].astype("f4")
    t2[3, 3, 3], seg[4, 4, 4], shifted = np.nan, 7, AFFINE + np.eye(4, k=3)
    write_volume(path_of(tmp_path, case, "t2"), t2, AFFINE)
    write_volume(path_of(tmp_path, case, "seg"), seg, shifted)
    findings = check(manifest).findings
    assert {finding.case for finding in findings} == {case.name}
    assert [f.code for f in findings] == ["empty-file", "affine-differs", "not-finite", "label-outside-schema"]


def test_a_file_that_crashes_the_reader_affects_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_good_cohort(tmp_path, 2)
    path = path_of(tmp_path, manifest.cases[0], "t2")
    seg = scan(0)["seg"]
    seg[0, 0, 0] = 3
    write_volume(path_of(tmp_path, manifest.cases[0], "seg"), seg, AFFINE)

    # How isolation handles a crash is tested elsewhere; here its results are simulated.
    def isolated(function: Callable, items: Iterable, description: str, workers: int = 0) -> Iterator:
        for item in items:
            dies = item == path or (isinstance(item, Case) and item.name == "good_00" and not function.args[-1])
            yield Failure("its reader died (SIGSEGV)") if dies else function(item)

    monkeypatch.setattr(preflight, "isolated", isolated)
    crash, value = check(manifest).findings
    assert (crash.case, crash.severity, crash.code) == ("good_00", "error", "reader-crash")
    assert (crash.path, crash.what) == (str(path), "cannot be read: its reader died (SIGSEGV)")
    assert (value.case, value.code) == ("good_00", "label-outside-schema")
    monkeypatch.setattr(preflight, "isolated", lambda f, items, *_: (Failure("took too long") for _ in items))
    assert [(f.case, f.code) for f in check(manifest).findings] == [(c.name, "reader-crash") for c in manifest.cases]


def test_4d_files(tmp_path: Path, in_process: None) -> None:
    write_case(tmp_path, "a", 0)
    case = Case("a", ("four.nii.gz",), "a_seg.nii.gz", "a")
    manifest = Manifest("four", "", ("T1", "T2"), SCHEMA, (case,), str(tmp_path))

    def save(*volumes: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(np.stack(volumes, -1), AFFINE), tmp_path / "four.nii.gz")

    t1, t2 = scan(0)["t1"], scan(0)["t2"]
    save(t1, t2)
    assert check(manifest).findings == ()
    for volumes in ([t1], [t1, t2, t1]):
        save(*volumes)
        for depth in ("voxels", "headers"):
            finding = only(check(manifest, depth))
            assert finding.what == f"{len(volumes)} volumes for 2 modalities (in four.nii.gz)"
            assert finding.remedy == "give one each of T1, T2"
    save(t1, np.zeros_like(t2))
    assert "four.nii.gz volume 1 is constant" in only(check(manifest)).what


def with_splits(manifest: Manifest, *splits: str) -> Manifest:
    return replace(manifest, cases=tuple(replace(c, split=s) for c, s in zip(manifest.cases, splits, strict=True)))


def change(manifest: Manifest, index: int, **fields: Any) -> Manifest:
    cases = list(manifest.cases)
    cases[index] = replace(cases[index], **fields)
    return replace(manifest, cases=tuple(cases))


TWO_SPLITS = ["train"] * 9 + ["test"] * 3

OF_THE_MANIFEST: dict[str, tuple[str, str, str, Callable[[Manifest], Manifest]]] = {
    "empty": ("empty-manifest", "error", "the manifest is empty", lambda m: replace(m, cases=())),
    "name twice": ("duplicate-name", "error", "case good_00 occurs 2", lambda m: change(m, 3, name="good_00")),
    "unknown split": ("unknown-split", "error", 'split "exam"', lambda m: change(m, 2, split="exam")),
    "above the root": (
        "outside-root",
        "error",
        "is not a path below root",
        lambda m: change(m, 2, label=f"../{Path(m.root).name}/good_02_seg.nii.gz"),
    ),
    "subject in two splits": (
        "subject-in-two-splits",
        "error",
        "subject person good_00 is in several splits (test, train)",
        lambda m: change(with_splits(m, *TWO_SPLITS), 11, subject="person good_00"),
    ),
    "some labels missing": (
        "missing-label",
        "warning",
        "2 of 12 cases have no label (the first is good_04)",
        lambda m: change(change(m, 4, label=None), 7, label=None),
    ),
    "no labels": (
        "missing-label",
        "warning",
        "12 of 12",
        lambda m: replace(m, cases=tuple(replace(c, label=None) for c in m.cases)),
    ),
    "file of another case": (
        "same-file",
        "error",
        "good_01_seg.nii.gz is also a file of good_01",
        lambda m: change(m, 5, label="good_01_seg.nii.gz"),
    ),
    "file of another modality": (
        "same-file",
        "error",
        "good_05_t1.nii.gz is listed for 2 modalities",
        lambda m: change(m, 5, images=("good_05_t1.nii.gz",) * 2),
    ),
    "too few for training": (
        "too-few-training-subjects",
        "error",
        "2 training subjects, but at least 3",
        lambda m: with_splits(m, *["train"] * 2, *["test"] * 10),
    ),
    "few for training": (
        "few-training-scans",
        "warning",
        "9 training scans",
        lambda m: with_splits(m, *TWO_SPLITS),
    ),
    "few for a verdict": (
        "few-test-subjects",
        "warning",
        "3 labelled test subjects: below 6",
        lambda m: with_splits(m, *TWO_SPLITS),
    ),
}


@pytest.mark.parametrize("name", OF_THE_MANIFEST)
def test_faults_of_the_manifest_need_no_voxels(good: Manifest, in_process: None, name: str) -> None:
    code, severity, words, plant_in = OF_THE_MANIFEST[name]
    manifest = plant_in(good)
    findings = check(manifest, "headers").findings
    numbers = {"few-test-subjects", "few-training-scans"} if {c.split for c in manifest.cases} > {"train"} else set()
    (finding,) = [f for f in findings if f.code == code]
    assert {f.code for f in findings} - numbers == {code} - numbers
    assert finding.severity == severity and words in finding.what and finding.remedy


def test_a_file_listed_twice_is_not_reported_as_a_copy(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path, 3)
    shared = change(manifest, 1, images=manifest.cases[0].images, label=manifest.cases[0].label)
    assert {(f.case, f.code) for f in check(shared).findings} == {("good_01", "same-file")}
    own = change(manifest, 1, images=(manifest.cases[1].images[0],) * 2)
    assert [(f.case, f.code) for f in check(own).findings] == [("good_01", "same-file")]


def test_too_few_labelled_subjects(good: Manifest, in_process: None) -> None:
    assert check(good, "headers", Expectations(labelled=12)).findings == ()
    finding = only(check(good, "headers", Expectations(labelled=13)))
    assert (finding.severity, finding.code) == ("error", "too-few-labelled")
    assert finding.what == "12 training subjects have a label, but data.labelled is 13"


@pytest.mark.slow
def test_classes_missing_in_labels(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path, 4)

    def write(index: int, without: int) -> None:
        label = scan(index)["seg"]
        label[label == without] = 0
        write_volume(path_of(tmp_path, manifest.cases[index], "seg"), label, AFFINE)

    write(2, 4)
    assert str(only(check(manifest))).startswith("note: planted: class rim is in 3 of 4 labels")
    write(1, 4)
    write(3, 4)
    write(0, 1)
    expected = Expectations(min_train_scans=0, min_test_subjects=0)
    finding, other = check(with_splits(manifest, "test", "train", "train", "train"), expected=expected).findings
    assert finding.code == "class-in-some" and "class core" in finding.what
    assert (other.severity, other.what) == ("warning", "class rim is in 1 labels of test, in none for training")
    write(0, 4)
    finding = only(check(manifest))
    assert (finding.severity, finding.code) == ("warning", "class-never-occurs")


def test_the_report_as_json(report: Report) -> None:
    content = json.loads(json.dumps(report_json(report)))
    assert content["errors"] + content["warnings"] + content["notes"] == len(content["findings"])
    assert content["errors"] == report.count("error") > 0
    assert {"case", "severity", "code", "what", "remedy", "path"} == set(content["findings"][0])
    assert content["cases"]["good_00"] == {
        "shape": list(SHAPE),
        "spacing": [2.0, 2.0, 2.5],
        "orientation": "RAS",
        "classes": ["background", "core", "rim"],
    }
    assert report.facts["image empty"] != CaseFacts() and report.facts["one modality"].volumes == ()


def test_an_unknown_depth_is_refused(good: Manifest) -> None:
    with pytest.raises(ValueError, match="depth"):
        check(good, "everything")  # type: ignore[arg-type]


@pytest.mark.slow
def test_progress_goes_to_standard_error(good: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    check(good, "headers")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_phantoms_only_have_a_finding_about_their_number(tmp_path: Path) -> None:
    write_cohort(tmp_path, 12, (32, 32, 32), 3)
    cases = [
        Case(name, tuple(f"{name}/{name}_{m.lower()}.nii.gz" for m in MODALITIES), f"{name}/{name}_seg.nii.gz", name)
        for name in sorted(folder.name for folder in tmp_path.glob("Phantom_*"))
    ]
    schema = LabelSchema(((0, "background"), (1, "necrosis"), (2, "oedema"), (4, "enhancing")))
    manifest = Manifest("phantom", "", MODALITIES, schema, tuple(cases), str(tmp_path))
    assert check(manifest).findings == ()
    split = with_splits(manifest, *TWO_SPLITS)
    assert codes(check(split)) == {"few-training-scans": "warning", "few-test-subjects": "warning"}


@pytest.mark.slow
def test_the_real_hippocampus_has_no_findings_of_cases(medaug_data: Path) -> None:
    committed = Path(__file__).parents[2] / "data_manifests" / "hippocampus.json"
    manifest = Manifest.load(committed, root=Path(medaug_data) / "Task04_Hippocampus")
    assert len(manifest.cases) == 199
    assert set(codes(check(manifest))) <= {"likely-same-subject"}
