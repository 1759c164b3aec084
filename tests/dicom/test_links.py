"""Which label belongs to which series, if several modalities of a study have labels."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from dicom_files import uid
from test_tree import T1, codes_of, draw_rtstruct, labelled, scan

MODALITIES = {"T1": "t1", "CT": "^ct", "PET": "^pet"}


def write_study(folder: Path, labels: tuple[str, ...] = ("t1", "ct", "pet")) -> None:
    """Three series in one frame of reference, each with its own label; all have SeriesNumber 1, as some tools write."""
    for number, name in enumerate(("t1", "ct", "pet"), 2):
        images = scan(folder / name, number, SeriesDescription=f"{name} image")
        if name in labels:
            path = draw_rtstruct(folder / name / "rs.dcm", images, [f"core_{name}"], number)
            dataset = pydicom.dcmread(path)
            dataset.SeriesNumber = 1
            dataset.save_as(path)


@pytest.mark.parametrize("name", ["t1", "ct", "pet"])
def test_a_label_belongs_to_the_series_that_it_references(tmp_path: Path, name: str) -> None:
    write_study(tmp_path)
    made = labelled(tmp_path, {name: {"SeriesDescription": name}}, structures={"core": "core"})
    (case,) = made.cases
    assert [label.path for label in case.labels] == [tmp_path / name / "rs.dcm"]
    assert sorted(codes_of(made)) == [("note", "dicom-label-unlinked")] * 2 + [("note", "dicom-not-used")]


def test_a_message_distinguishes_the_candidates_and_its_remedies_work(tmp_path: Path) -> None:
    write_study(tmp_path)
    made = labelled(tmp_path, MODALITIES, structures={"core": "core"})
    (finding,) = made.findings
    assert finding.code == "dicom-two-labels" and not made.cases
    assert sorted(finding.what.removeprefix("core is contained in ").split(" and in ")) == [
        'series 1 (RTSTRUCT of "core_ct", drawn on MR series 3)',
        'series 1 (RTSTRUCT of "core_pet", drawn on MR series 4)',
        'series 1 (RTSTRUCT of "core_t1", drawn on MR series 2)',
    ]
    assert "`structures`" in finding.remedy and "glob `label`" in finding.remedy
    for way_out in ({"structures": {"core": "core_t1"}}, {"structures": {"core": "core"}, "label": "t1/rs*"}):
        made = labelled(tmp_path, MODALITIES, **way_out)
        (case,) = made.cases
        assert tmp_path / "t1" / "rs.dcm" in [label.path for label in case.labels] and not made.findings


def test_a_label_of_an_unmatched_series_is_used_only_if_selected(tmp_path: Path) -> None:
    write_study(tmp_path, ("ct",))
    made = labelled(tmp_path, T1, structures={"core": "core"})
    assert not made.cases[0].labels
    assert sorted(codes_of(made)) == [
        ("note", "dicom-not-used"),
        ("warning", "dicom-label-missing"),
        ("warning", "dicom-label-unlinked"),
    ]
    (finding,) = [finding for finding in made.findings if finding.code == "dicom-label-unlinked"]
    assert finding.what == (
        'series 1 (RTSTRUCT of "core_ct", drawn on MR series 3) is left out: '
        "no rule matches the series that it was drawn on"
    )
    made = labelled(tmp_path, T1, structures={"core": "core"}, label="ct/rs*")
    assert [label.path.parent.name for label in made.cases[0].labels] == ["ct"]
    assert sorted(codes_of(made)) == [("note", "dicom-not-used"), ("warning", "dicom-label-frame")]


def test_the_frame_of_reference_decides_for_a_label_whose_series_is_not_in_the_tree(tmp_path: Path) -> None:
    write_study(tmp_path, ("ct",))
    path = tmp_path / "ct" / "rs.dcm"
    dataset = pydicom.dcmread(path)
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (drawn_on,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    drawn_on.SeriesInstanceUID = uid("elsewhere")
    drawn_on.ContourImageSequence[0].ReferencedSOPInstanceUID = uid("elsewhere too")
    dataset.save_as(path)
    made = labelled(tmp_path, T1, structures={"core": "core"})
    assert [label.path for label in made.cases[0].labels] == [path]
    assert codes_of(made) == [("note", "dicom-not-used")]


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "name"), [("MR", "MR_T1"), ("CT", "CT"), ("PT", "PET")])
def test_three_structure_sets_of_a_sarcoma_patient(medaug_data: Path, modality: str, name: str) -> None:
    root = medaug_data / "STS" / "dicom" / "STS_018"
    if not root.is_dir():
        pytest.skip("no sarcoma patients in DICOM")
    made = labelled(root, {name: {"Modality": modality}}, structures={"core": "gtv"})
    (case,) = made.cases
    assert [label.path.relative_to(root).parts[:2] for label in case.labels] == [(name, "mask")]
    assert {severity for severity, _ in codes_of(made)} == {"note"}
