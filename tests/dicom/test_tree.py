from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import LPS, ramp, uid, write_series
from seg_files import write_rtstruct, write_seg

from medaug.cohort.schema import LabelSchema
from medaug.dicom.headers import scan_in_process
from medaug.dicom.privacy import Private, name_studies
from medaug.dicom.tree import Plan, plan_cohort
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.layouts.rules import Rules

SCHEMA = LabelSchema(((0, "background"), (1, "oedema"), (2, "core")))
UNLABELLED = LabelSchema(((0, "background"),))
T1 = {"T1": {"SeriesDescription": "t1"}}
BOTH = T1 | {"FLAIR": {"SeriesDescription": "flair", "EchoTime": "^1"}}


def draw_seg(path: Path, images: Sequence[Path], masks: Mapping[str, Any], number: int = 90) -> Path:
    return write_seg(path, images, list(masks.values()), names=list(masks), number=number)


def draw_rtstruct(path: Path, images: Sequence[Path], rois: Sequence[str], number: int = 95) -> Path:
    """Every ROI is the rectangle of columns 1 to 3, rows 1 to 2, on the second slice."""
    header = pydicom.dcmread(images[1], stop_before_pixels=True)
    rows, columns = header.PixelSpacing
    across, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    corners = [(0.5, 0.5), (3.5, 0.5), (3.5, 2.5), (0.5, 2.5)]
    points = [header.ImagePositionPatient + across * columns * x + down * rows * y for x, y in corners]
    contours = dict.fromkeys(rois, [points * LPS.diagonal()[:3]])
    return write_rtstruct(path, contours, images[1], number=number)


def box(shape: Sequence[int] = (6, 5, 4), low: int = 1) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[low : low + 2, 1:3, 1:3] = True
    return mask


def scan(folder: Path, number: int = 1, **tags: Any) -> list[Path]:
    """A small MR series whose files may share a folder with those of others."""
    own = f"{tags.get('PatientID', '')}_{number}_"
    return write_series(folder, ramp(), number=number, names=(own + "{}.dcm").format, **tags)


def t1(folder: Path, patient: str = "MADE-UP-1", number: int = 1, **tags: Any) -> list[Path]:
    return scan(folder, number, **{"SeriesDescription": "ax T1 post", "PatientID": patient} | tags)


def plan(
    root: Path,
    modalities: Mapping[str, Any] = T1,
    on_gap: str = "refuse",
    schema: LabelSchema = UNLABELLED,
    **rules: Any,
) -> Plan:
    tree = scan_in_process(root)
    names = name_studies({series.study_uid: series.patient_id for series in tree.series}, Private("00" * 32))
    return plan_cohort(tree, Rules(modalities=modalities, **rules), schema, names, root, on_gap)


labelled = partial(plan, schema=SCHEMA)


def codes_of(made: Plan) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in made.findings]


def test_modalities_come_in_the_order_of_the_rules_whatever_the_folders(tmp_path: Path) -> None:
    scan(tmp_path / "x", 1, SeriesDescription="FLAIR", EchoTime="120")
    t1(tmp_path / "y" / "z", number=2)
    t1(tmp_path, "OTHER", number=7)
    scan(tmp_path, 8, PatientID="OTHER", SeriesDescription="a flair", EchoTime="110")
    scan(tmp_path, 9, PatientID="OTHER", SeriesDescription="a flair", EchoTime="30")
    made = plan(tmp_path, BOTH)
    assert made.modalities == ("T1", "FLAIR")
    assert sorted([s.number for s in case.series] for case in made.cases) == [[2, 1], [7, 8]]
    assert codes_of(made) == [("note", "dicom-not-used")] and made.findings[0].what == "series 9: no rule matches"
    assert not any("MADE" in case.name.case or "OTHER" in case.name.case for case in made.cases)


def test_a_rule_without_a_keyword_matches_the_description(tmp_path: Path) -> None:
    t1(tmp_path)
    assert len(plan(tmp_path, {"T1": "post$"}).cases) == 1


def test_two_series_for_one_modality(tmp_path: Path) -> None:
    t1(tmp_path, number=3, EchoTime="4")
    paths = t1(tmp_path, number=4, EchoTime="9")
    made = plan(tmp_path)
    (finding,) = made.findings
    assert (finding.severity, finding.code) == ("error", "dicom-two-series")
    assert finding.what == "T1 is matched by series 3 and series 4"
    assert "by EchoTime, SeriesNumber, in which they differ" in finding.remedy
    assert set(paths) < set(made.files[finding]) and not made.cases


def test_one_series_for_two_modalities(tmp_path: Path) -> None:
    t1(tmp_path, number=3)
    made = plan(tmp_path, T1 | {"post": {"SeriesDescription": "post"}})
    assert codes_of(made) == [("error", "dicom-two-rules")] and not made.cases
    assert made.findings[0].what == "series 3 is matched by the rules of T1 and post"


def test_what_is_missing_and_what_is_left_out(tmp_path: Path) -> None:
    t1(tmp_path, "A")
    scan(tmp_path, PatientID="B", SeriesDescription="scout")
    made = plan(tmp_path, BOTH)
    assert sorted(codes_of(made)) == [("error", "dicom-missing-modality"), ("warning", "dicom-study-not-used")]
    assert {f.what for f in made.findings if f.severity == "error"} == {"no series matches FLAIR (there are series 1)"}


def test_a_gap_is_an_error_unless_it_is_resampled(tmp_path: Path) -> None:
    t1(tmp_path)[2].unlink()
    t1(tmp_path, "OTHER")
    made = plan(tmp_path)
    assert codes_of(made) == [("error", "dicom-gap")] and len(made.cases) == 1
    assert "series 1: lacks 1 slice" in made.findings[0].what
    made = plan(tmp_path, on_gap="resample")
    assert codes_of(made) == [("note", "dicom-gap")] and len(made.cases) == 2


def test_faults_of_unused_series_are_not_reported(tmp_path: Path) -> None:
    t1(tmp_path)
    scan(tmp_path, 5, SeriesDescription="scout")[2].unlink()
    assert codes_of(plan(tmp_path)) == [("note", "dicom-not-used")]


def test_monochrome1_among_other_scans_is_reported(tmp_path: Path) -> None:
    inverted = t1(tmp_path, "A", PhotometricInterpretation="MONOCHROME1")
    assert not plan(tmp_path).findings  # all have the same polarity
    t1(tmp_path, "B")
    t1(tmp_path, "C")
    (finding,) = (made := plan(tmp_path)).findings
    assert (finding.severity, finding.code) == ("warning", "dicom-monochrome1") and len(made.cases) == 3
    assert finding.what == "T1 (series 1) is MONOCHROME1 (small values are bright); in 2 other cases it is not"
    assert set(made.files[finding]) == set(inverted)
    made = plan(tmp_path, exclude_series=[{"PhotometricInterpretation": "MONOCHROME1"}])
    assert codes_of(made) == [("note", "dicom-excluded")] and len(made.cases) == 2


def test_hounsfield_units_do_not_depend_on_monochrome1(tmp_path: Path) -> None:
    for patient, shown in (("A", "MONOCHROME1"), ("B", "MONOCHROME2")):
        t1(tmp_path, patient, modality="CT", PhotometricInterpretation=shown)
    assert not plan(tmp_path).findings


def test_patients(tmp_path: Path) -> None:
    t1(tmp_path, "", StudyInstanceUID=uid(1))
    t1(tmp_path, "A", number=2, StudyInstanceUID=uid(2))
    scan(tmp_path, 3, PatientID="B", StudyInstanceUID=uid(2), SeriesDescription="flair", EchoTime="1")
    assert sorted(codes_of(plan(tmp_path))) == [
        ("error", "dicom-two-patients"),
        ("note", "dicom-not-used"),
        ("warning", "dicom-no-patient-id"),
    ]


def test_unreadable_files_are_counted_by_reason_and_listed_in_the_private_file(tmp_path: Path) -> None:
    t1(tmp_path)
    for name in ("Smith.dcm", "Smyth.dcm"):
        (tmp_path / name).touch()
    (finding,) = (made := plan(tmp_path)).findings
    assert (finding.severity, finding.code) == ("error", "dicom-unreadable")
    assert finding.what == "2 file(s) cannot be read (is empty (zero bytes))"
    assert {path.name for path in made.files[finding]} == {"Smith.dcm", "Smyth.dcm"}


def test_without_modalities_the_series_are_listed_without_names(tmp_path: Path) -> None:
    for number, patient in enumerate(("QX77", "QX78"), 1):
        t1(tmp_path, patient, number, PatientName="Zebra^Li", SeriesDescription="T1 zebra_qx77 LI line")
    scan(tmp_path, 9, PatientID="QX78", SeriesDescription="localiser", Modality="OT")
    with pytest.raises(UserError) as error:
        plan(tmp_path, {})
    text = str(error.value)
    assert '1 x MR "T1 [removed]_[removed] [removed] line" (6x5x4)' in text and '1 x OT "localiser" (6x5x4)' in text
    assert "modalities:" in text and "zebra" not in text.lower()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"SeriesDescripton": "x"},
            "rules can use; did you mean SeriesDescription?",
        ),
        ({"OperatorsName": "x"}, "OperatorsName is not a keyword that rules can use; "),
        ("*t1*", '"*t1*" is not a regular expression'),
    ],
)
def test_bad_rules_are_refused(tmp_path: Path, rule: Any, message: str) -> None:
    t1(tmp_path)
    with pytest.raises(UserError, match="modality T1: ") as error:
        plan(tmp_path, {"T1": rule})
    assert message in str(error.value) and error.value.path == "rules"


def test_a_label_finds_its_case_by_series_then_frame_then_study(tmp_path: Path) -> None:
    for patient in "ABC":
        images = t1(tmp_path, patient)
        draw_seg(tmp_path / f"{patient}.dcm", images, {"core": box()})

    def unmoor(path: Path, **changes: Any) -> None:
        dataset = pydicom.dcmread(path)
        dataset.pop("ReferencedSeriesSequence", None)
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.pop("DerivationImageSequence", None)
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)

    unmoor(tmp_path / "B.dcm", StudyInstanceUID=uid("elsewhere"))  # its frame of reference is B's
    unmoor(tmp_path / "C.dcm", FrameOfReferenceUID=uid("elsewhere"))
    made = labelled(tmp_path)
    assert sorted((c.series[0].patient_id, c.labels[0].path.stem) for c in made.cases) == [(p, p) for p in "ABC"]
    assert codes_of(made) == [("warning", "dicom-label-frame")]
    unmoor(tmp_path / "C.dcm", StudyInstanceUID=uid("elsewhere"))
    made = labelled(tmp_path)
    assert sorted(codes_of(made)) == [("warning", "dicom-label-missing"), ("warning", "dicom-label-unlinked")]


def test_exact_copies_are_only_noted(tmp_path: Path) -> None:
    images = t1(tmp_path / "a")
    draw_seg(tmp_path / "a" / "seg.dcm", images, {"core": box()})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for label in (None, "a/seg*", "b/seg*"):
        made = labelled(tmp_path, label=label)
        assert codes_of(made) == [("note", "dicom-copies")] and len(made.cases[0].labels) == 1
        assert set(made.files[made.findings[0]]) == set(tmp_path.rglob("*.dcm"))


def test_two_labels_of_one_class_conflict(tmp_path: Path) -> None:
    images = t1(tmp_path)
    draw_seg(tmp_path / "one" / "x.dcm", images, {"Core": box()}, 90)
    draw_seg(tmp_path / "two" / "x.dcm", images, {"core": box(low=2)}, 91)
    draw_rtstruct(tmp_path / "rt.dcm", images, ["oedema"])
    made = labelled(tmp_path)
    (finding,) = made.findings
    assert finding.code == "dicom-two-labels"
    assert finding.what == (
        'core is contained in series 90 (SEG of "Core", drawn on MR series 1) '
        'and in series 91 (SEG of "core", drawn on MR series 1)'
    )
    assert not made.cases
    made = labelled(tmp_path, structures={"core": "^core", "oedema": "^oed"}, label="[or]*/**/*.dcm")
    assert [label.path.parent.name for label in made.cases[0].labels] == ["one"] and not made.findings
    (tmp_path / "two" / "x.dcm").unlink()
    assert sorted(label.kind for label in labelled(tmp_path).cases[0].labels) == ["RTSTRUCT", "SEG"]


def test_a_damaged_label_object_is_a_finding_without_its_path(tmp_path: Path) -> None:
    path = draw_seg(tmp_path / "Smith" / "x.dcm", t1(tmp_path), {"core": box()})
    dataset = pydicom.dcmread(path)
    del dataset.SegmentSequence
    dataset.save_as(path)
    made = labelled(tmp_path)
    assert codes_of(made)[0] == ("error", "dicom-label-unreadable")
    assert "Smith" not in str(made.findings[0]) and made.files[made.findings[0]] == (path,)


def test_a_nifti_label_belongs_to_the_nearest_study(tmp_path: Path) -> None:
    for patient in "AB":
        t1(tmp_path / patient / "series", patient)
    t1(tmp_path / "C", "C")
    for name in ("A/series/label.nii", "B/labels/label.nii", "C/label.nii"):
        write_volume(tmp_path / name, box().astype(np.uint8), np.eye(4))
    made = labelled(tmp_path, label="**/label.nii")
    assert sorted((c.series[0].patient_id, c.labels[0].path.parts[-3:][-2]) for c in made.cases) == [
        ("A", "series"),
        ("B", "labels"),
        ("C", "C"),
    ]
    write_volume(tmp_path / "label.nii", box().astype(np.uint8), np.eye(4))
    assert codes_of(labelled(tmp_path, label="**/label.nii")) == [("error", "dicom-label-ambiguous")]
    (tmp_path / "label.nii").rename(tmp_path / "C" / "2.nii")
    assert codes_of(labelled(tmp_path, label="**/*.nii")) == [("error", "dicom-two-labels")]
    (tmp_path / "C" / "2.nii").rename(tmp_path / "C" / "._2.nii")
    assert codes_of(labelled(tmp_path, label="**/*.nii")) == []
    (tmp_path / "C" / "._2.nii").rename(tmp_path / "C" / "2.nii")
    (tmp_path / "B" / "labels" / "label.nii").unlink()
    (tmp_path / "C" / "2.nii").unlink()
    assert codes_of(labelled(tmp_path, label="**/*.nii")) == [("warning", "dicom-label-missing")]


def test_the_label_of_an_excluded_study_is_used_for_no_other(tmp_path: Path) -> None:
    t1(tmp_path / "A", "A")
    scan(tmp_path / "B", PatientID="B", SeriesDescription="scout")
    write_volume(tmp_path / "B" / "label.nii", box().astype(np.uint8), np.eye(4))
    made = labelled(tmp_path, label="**/label.nii")
    assert sorted(code for _, code in codes_of(made)) == [
        "dicom-label-missing",
        "dicom-label-unlinked",
        "dicom-study-not-used",
    ]
    assert not made.cases[0].labels


@pytest.mark.parametrize("label", ["/*.nii", ""])
def test_bad_globs_are_refused(tmp_path: Path, label: str) -> None:
    t1(tmp_path)
    with pytest.raises(UserError, match="rules: label: "):
        labelled(tmp_path, label=label)
