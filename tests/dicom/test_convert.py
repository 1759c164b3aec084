from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import axial, oblique, ramp, uid, write_series
from test_tree import box, draw_rtstruct, draw_seg, scan, t1

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.dicom import convert, headers
from medaug.dicom.convert import Ingested, ingest_dicom, resample
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_images, read_label, read_volume
from medaug.imaging.volume import Volume
from medaug.layouts.rules import Rules
from medaug.options import IngestOptions

SCHEMA = LabelSchema(((0, "background"), (7, "oedema"), (3, "core")))
UNLABELLED = LabelSchema(((0, "background"),))
MODALITIES = {"T1": {"SeriesDescription": "t1"}}
TWO = MODALITIES | {"T2/x": {"SeriesDescription": "t2"}}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take seconds to start; those of the killed ingest are real."""
    for module in (headers, convert):
        monkeypatch.setattr(module, "isolated", lambda function, items, *_, **__: map(function, items))


@contextmanager
def ingested(
    root: Path,
    out: Path,
    modalities: Any = MODALITIES,
    rules: Any = None,
    schema: LabelSchema = UNLABELLED,
    **options: Any,
) -> Iterator[Ingested]:
    made = Rules(modalities=modalities, **(rules or {}))
    with ingest_dicom(root, made, schema, IngestOptions(workers=1, **options), out) as result:
        yield result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dicom"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "cohort.json"


@pytest.mark.slow
def test_scans_and_labels_keep_their_grid(root: Path, out: Path) -> None:
    images = write_series(root / "a", ramp(), oblique(), SeriesDescription="T1", PatientID="P1")
    write_series(root / "b", 2 * ramp(), oblique(), number=2, SeriesDescription="T2", PatientID="P1")
    draw_seg(root / "seg.dcm", images, {"core": box(), "scalp": ~box()})
    draw_rtstruct(root / "rt.dcm", images, ["oedema"])
    with ingested(root, out, TWO, schema=SCHEMA) as result:
        manifest = result.keep()
        manifest.save(out)
    (case,) = Manifest.load(out).cases
    assert case.images == (f"images/{case.name}_T1.nii.gz", f"images/{case.name}_T2-x.nii.gz")
    assert case.name == f"{case.subject}_1" and case.split == "train" and manifest.name == "cohort"
    array, affine, dtype = read_images(manifest.image_paths(case))
    np.testing.assert_array_equal(array, [ramp(), 2 * ramp()])
    np.testing.assert_allclose(affine, oblique(), atol=1e-5)
    assert dtype == np.int16
    label = read_label(out.parent / "cohort" / case.label).array  # type: ignore[operator]
    expected = np.zeros((6, 5, 4))
    expected[1:4, 1:3, 1] = 7
    expected[box()] = 3  # the later class wins
    assert set(np.unique(label)) == {0, 3, 7}
    np.testing.assert_array_equal(label, expected)
    assert [f.code for f in result.findings if "scalp" in f.what] == ["dicom-label-names"]
    assert bytes(nib.load(manifest.image_paths(case)[0]).header["descrip"]).strip(b"\0") == b""


def test_a_second_ingest_gives_the_same_names_and_new_studies_new_ones(root: Path, out: Path, tmp_path: Path) -> None:
    t1(root, "P1")
    with ingested(root, out) as result:
        first = result.keep()
    t1(root, "P1", 5, StudyInstanceUID="1.2.3")
    t1(root, "P2", 6)
    private = str(out.with_suffix(".private.json"))
    with ingested(root, tmp_path / "again.json", private=private) as result:
        second = result.manifest
    names = {case.name for case in second.cases}
    subject = first.cases[0].subject
    assert first.cases[0].name == f"{subject}_1"
    assert {f"{subject}_1", f"{subject}_2"} < names and len(names) == 3
    known = json.loads(Path(private).read_text())
    assert known["subjects"][subject] == "P1" and len(known["subjects"]) == 2
    with ingested(root, tmp_path / "other.json") as result:
        assert not names & {case.name for case in result.manifest.cases}  # another salt


def test_patient_ids_can_be_the_subjects(root: Path, out: Path) -> None:
    for number, patient in enumerate(("P1", "P/1", "P?1")):
        t1(root, patient.replace("/", "s"), number, PatientID=patient)
    with ingested(root, out, pseudonyms=False) as result:
        subjects = sorted(case.subject for case in result.manifest.cases)
    assert subjects[2] == "P1" and all(s.startswith("P-1-") for s in subjects[:2]) and len(set(subjects)) == 3


def test_only_the_private_file_remains_without_keep(root: Path, out: Path) -> None:
    t1(root)
    with ingested(root, out) as result:
        assert all(path.is_file() for path in result.manifest.image_paths(result.manifest.cases[0]))
    assert [path.name for path in out.parent.iterdir()] == ["cohort.private.json"]
    with pytest.raises(ZeroDivisionError), ingested(root, out):
        raise ZeroDivisionError
    assert [path.name for path in out.parent.iterdir()] == ["cohort.private.json"]


def test_an_unreadable_series_is_a_finding_and_the_others_are_converted(root: Path, out: Path) -> None:
    t1(root, "P1")
    damaged = t1(root, "P2")[1]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-60])
    with ingested(root, out) as result:
        assert len(result.manifest.cases) == 1
    (finding,) = [f for f in result.findings if f.severity == "error"]
    assert "series 1" in finding.what and str(root) not in str(finding)
    (problem,) = json.loads(out.with_suffix(".private.json").read_text())["problems"]
    assert str(damaged) in problem["files"] and problem["code"] == finding.code


def test_the_subject_is_that_of_the_images(root: Path, out: Path) -> None:
    """Segmentation tools often write another PatientID, or none."""
    images = t1(root, "P1")
    t1(root, "P1", 2, StudyInstanceUID=uid("second visit"))
    path = draw_seg(root / "seg.dcm", images, {"core": box()})
    dataset = pydicom.dcmread(path)
    dataset.PatientID = "ZZZ"
    dataset.save_as(path)
    with ingested(root, out, schema=SCHEMA) as result:
        first, second = result.manifest.cases
    assert first.subject == second.subject and {first.label, second.label} > {None}


def test_another_frame_of_reference_on_the_same_grid_is_a_warning(root: Path, out: Path) -> None:
    write_series(root / "a", ramp(), SeriesDescription="T1")
    write_series(root / "b", ramp(), number=2, SeriesDescription="T2", FrameOfReferenceUID="1.2.3")
    with ingested(root, out, TWO) as result:
        (finding,) = result.findings
    assert (finding.severity, finding.code) == ("warning", "dicom-frame") and len(result.manifest.cases) == 1


@pytest.mark.parametrize("on_grid", ["refuse", "resample"])
def test_modalities_on_two_grids(root: Path, out: Path, on_grid: str) -> None:
    coarse, fine = axial((2, 2, 4)), axial((1, 1, 2))
    plane = np.add.outer(np.add.outer(np.arange(8), 10 * np.arange(8)), 100 * np.arange(8)).astype(np.int16)
    write_series(root / "a", plane[:4, :4, :4], coarse, SeriesDescription="T1")
    write_series(root / "b", plane, fine, number=2, SeriesDescription="T2", FrameOfReferenceUID="1.2.3")
    with ingested(root, out, TWO, on_grid=on_grid) as result:
        if on_grid == "refuse":
            (finding,) = result.findings
            assert finding.code == "dicom-grid" and not result.manifest.cases
            assert finding.what == "T2/x (series 2) has shape 8x8x8 against 4x4x4 of T1 (series 1)"
            return
        assert [finding.code for finding in result.findings] == ["dicom-frame"]
        (case,) = result.manifest.cases
        made = read_volume(result.manifest.image_paths(case)[1])
    np.testing.assert_array_equal(made.array, plane[::2, ::2, ::2])  # a linear function is interpolated exactly
    np.testing.assert_allclose(made.affine, coarse, atol=1e-5)


def test_resampling_agrees_with_a_linear_function_on_oblique_grids() -> None:
    source, target = oblique((1, 1.5, 2)), oblique((1.3, 0.9, 1.1), (0.1, 0.2, -0.1))
    target[:3, 3] = (source @ [8, 6, 5, 1])[:3]

    def of(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        return points @ [1.0, -2.0, 0.5] + 3

    volume = Volume(of(source, (24, 20, 16)), source, np.dtype(float))
    grid = Volume(np.zeros((4, 5, 6)), target, np.dtype(float)).header
    # The spline mirrors the ramp at the border; what is left of that inside is a hundredth of a step.
    np.testing.assert_allclose(resample(volume, grid).array, of(target, (4, 5, 6)), atol=2e-2)


def test_a_missing_slice_is_interpolated_on_request(root: Path, out: Path) -> None:
    t1(root)[1].unlink()
    with ingested(root, out, on_gap="resample") as result:
        (case,) = result.manifest.cases
        np.testing.assert_array_equal(read_volume(result.manifest.image_paths(case)[0]).array, ramp())


def test_a_nifti_label_may_have_flipped_axes(root: Path, out: Path) -> None:
    write_series(root, ramp(), oblique(), SeriesDescription="T1")
    values = box().astype(np.uint8) * 3
    values[5, 4, 3] = 7
    flip = np.array([[-1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]])
    permute = np.eye(4)[:, [2, 0, 1, 3]]
    write_volume(root / "Smith.nii.gz", values[::-1, :, ::-1].transpose(2, 0, 1), oblique() @ flip @ permute)
    with ingested(root, out, rules={"label": "*.nii.gz"}, schema=SCHEMA) as result:
        label = result.manifest.label_path(result.manifest.cases[0])
        assert label is not None
        np.testing.assert_array_equal(read_label(label).array, values)
    assert not result.findings


@pytest.mark.parametrize(
    ("values", "affine", "code", "what"),
    [
        (box().astype(np.uint8), axial(), "dicom-label", "the label file: label values 1 are not in the schema"),
        (box().astype(np.uint8), axial(origin=(0, 0, 0)), "dicom-label-grid", "the label file lies 37.4 mm away"),
        (None, None, "dicom-label", "the label file: is empty"),
    ],
)
def test_a_wrong_nifti_label(root: Path, out: Path, values: Any, affine: Any, code: str, what: str) -> None:
    write_series(root, ramp(), SeriesDescription="T1")
    if values is None:
        (root / "Smith.nii.gz").touch()
    else:
        write_volume(root / "Smith.nii.gz", values, affine)
    with ingested(root, out, rules={"label": "*.nii.gz"}, schema=SCHEMA) as result:
        (finding,) = result.findings
    assert finding.code == code and finding.what.startswith(what)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.nii.gz", b"Quax", "is not a gzip file, although its name says so"),
        (
            "x.mhd",
            b"NDims = 3\nBinaryData = True\nElementDataFile = /Quax/Quax.raw\n",
            "names a voxel file outside its folder",
        ),
    ],
)
@pytest.mark.parametrize("folder", ["Quax", "Q\udcffuax", "Quax\nQuax"])
def test_faults_of_a_label_file_are_reported_without_names(
    root: Path, out: Path, name: str, content: bytes, what: str, folder: str
) -> None:
    write_series(root / folder, ramp(), SeriesDescription="T1")
    (root / folder / name).write_bytes(content)
    with ingested(root, out, rules={"label": f"**/{name}"}, schema=SCHEMA) as result:
        (finding,) = result.findings
    if folder.isascii() or name == "x.nii.gz":
        assert finding.what == f"the label file: {what}"
    assert "uax" not in str(finding) and finding.remedy
    (problem,) = json.loads(out.with_suffix(".private.json").read_text())["problems"]
    assert str(root / folder / name) in problem["files"]


def test_unmatched_segments_are_listed_without_the_patients_name(root: Path, out: Path) -> None:
    images = t1(root, "P1", PatientName="Zebra^Quirin")
    draw_seg(root / "seg.dcm", images, {"GTV zebra": box()})
    with ingested(root, out, schema=SCHEMA) as result:
        (finding,) = result.findings
    assert finding.code == "dicom-label" and '"GTV [removed]"' in finding.what and "series 90" in finding.what


def test_without_labels_in_the_rules_the_segments_are_listed(root: Path, out: Path) -> None:
    images = t1(root, "P1", PatientName="Zebra^Quirin")
    draw_seg(root / "seg.dcm", images, {"GTV zebra": box(), "core": box()})
    rules = Rules(modalities=MODALITIES)
    with (
        pytest.raises(UserError, match=r'"GTV \[removed\]" \(1\), "core" \(1\);'),
        ingest_dicom(root, rules, None, IngestOptions(workers=1), out),
    ):
        pass


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("dicom/cohort.json", {}, "out: is inside root"),
        ("x.json", {"private": "dicom/p.json"}, "out: is inside root"),
        ("used.json", {}, "exists already"),
    ],
)
def test_bad_paths_and_options_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, options: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    t1(root)
    (tmp_path / "used").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message), ingested(root, Path(where), **options):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_scans_of_an_ingest_that_was_killed_before_its_manifest_are_kept_if_they_are_the_same(
    root: Path, out: Path
) -> None:
    t1(root)
    with ingested(root, out) as first:
        first.keep()  # and is killed before it saves the manifest
    (scan_,) = (first.folder / "images").iterdir()
    written = scan_.stat().st_mtime_ns
    with ingested(root, out) as again:
        manifest = again.keep()
        assert not list(out.parent.glob(".tmp-*"))  # a process that is killed from here on leaves nothing
    assert manifest.root == str(first.folder) and scan_.stat().st_mtime_ns == written
    assert [path.name for path in manifest.image_paths(manifest.cases[0])] == [scan_.name]
    scan_.write_bytes(b"of the user")
    with (
        pytest.raises(UserError, match="holds scans that differ from those"),
        ingested(root, out) as last,
    ):
        last.keep()
    assert scan_.read_bytes() == b"of the user" and not list(out.parent.glob(".tmp-*"))


def test_a_tree_without_dicom(root: Path, out: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="none of its 1 files is DICOM"), ingested(root, out):
        pass


@pytest.mark.parametrize("out_of_the_other", ["cohort.json", "other.json"])
def test_two_ingests_with_one_private_file_do_not_run_at_once(root: Path, out: Path, out_of_the_other: str) -> None:
    scan(root, 1, SeriesDescription="T1")
    key = out.with_name("key.json")
    with ingested(root, out, private=str(key)) as result:
        before = key.read_bytes()
        other = out.with_name(out_of_the_other)
        with (
            pytest.raises(UserError, match="another process is writing it; run the same command again"),
            ingested(root, other, private=str(key)),
        ):
            pass
        result.keep().save(out)
    assert key.read_bytes() == before and not out.with_name("other.json").exists()
    with ingested(root, out.with_name("other.json"), private=str(key)) as result:
        assert [case.subject for case in result.manifest.cases] == [case.subject for case in Manifest.load(out).cases]
    assert not list(out.parent.glob(".*.lock"))


@pytest.mark.slow
def test_a_killed_ingest_leaves_no_manifest_and_no_folder_by_that_name(root: Path, out: Path) -> None:
    scan(root, 1, SeriesDescription="T1")
    code = f"""
import os, signal
from pathlib import Path
from medaug.dicom.convert import ingest_dicom
from medaug.layouts.rules import Rules
from medaug.cohort.schema import LabelSchema
from medaug.options import IngestOptions
rules, schema = Rules(modalities={MODALITIES!r}), LabelSchema(((0, "background"),))
with ingest_dicom({str(root)!r}, rules, schema, IngestOptions(workers=1), Path({str(out)!r})) as result:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -9
    assert not out.exists() and not out.with_suffix("").exists()
    assert out.with_suffix(".private.json").stat().st_mode & 0o777 == 0o600
    with ingested(root, out) as result:
        result.keep().save(out)
    (case,) = Manifest.load(out).cases
    assert list(json.loads(out.with_suffix(".private.json").read_text())["subjects"]) == [case.subject]


@pytest.mark.slow
def test_the_real_study_agrees_with_dcm2niix(
    medaug_data: Path, out: Path, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    names = {"T1": "^T1post", "T1pre": "^T1pre", "FLAIR": "flair", "T2": "^T2"}
    rules = Rules(modalities={name: {"SeriesDescription": rule} for name, rule in names.items()})
    with ingest_dicom(medaug_data / "dicom", rules, None, IngestOptions(workers=2), out) as result:
        manifest = result.keep()
    assert [(finding.severity, finding.code) for finding in result.findings] == [("note", "dicom-not-used")]
    (case,) = manifest.cases
    for index, folder in enumerate(("12-T1post", "34909-T1pre", "36459-FLAIR", "37916-T2")):
        (source,) = (medaug_data / "dicom").glob(f"*/{folder}*")
        made = tmp_path / folder
        made.mkdir()
        command = [tool("dcm2niix"), "-z", "y", "-b", "n", "-f", "x", "-o", str(made), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        theirs = nib.as_closest_canonical(nib.load(next(made.glob("*.nii.gz"))))
        ours = nib.as_closest_canonical(nib.load(manifest.image_paths(case)[index]))
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        corners = np.array(np.meshgrid(*[(0, side - 1) for side in ours.shape], [1])).reshape(4, -1)
        assert np.linalg.norm(((ours.affine - theirs.affine) @ corners)[:3], axis=0).max() < 5e-3
