"""Series that mix acquisitions although every position has one slice, and rules that leave the odd files out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import axial, ramp, uid, write_enhanced, write_series
from pydicom.dataset import Dataset
from test_tree import codes_of, plan

from medaug.dicom.headers import scan_in_process
from medaug.dicom.series import read_folder, read_series, series_problems
from medaug.errors import UserError
from medaug.layouts.rules import COMMAND_LINE, NO_RULES, read_rules, with_excluded

SHAPE = (6, 5, 20)
ODD = (8, 11, 14)
DIFFERENCES: dict[str, Any] = {
    "EchoTime": "4.92",
    "EchoNumbers": 2,
    "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"],
    "TemporalPositionIdentifier": 2,
    "ContrastBolusAgent": "gadolinium",
    "DiffusionBValue": 1000.0,
    "SequenceName": "*se2d1",
    "InversionTime": "900",
    "FlipAngle": "15",
    "RepetitionTime": "4000",
    "ComplexImageComponent": "PHASE",
    "NominalPercentageOfCardiacPhase": 70.0,
    "ConvolutionKernel": "B70f",
    "KVP": "80",
    "ScanOptions": "FS",
    "Units": "CNTS",
    "PhotometricInterpretation": "MONOCHROME1",
    "SliceThickness": "5",
    "SeriesDescription": "something else",
    "FrameOfReferenceUID": uid("another frame"),
}
ARRANGEMENTS = {
    "a few slices of another": ODD,
    "alternating, half a step apart": tuple(range(1, 20, 2)),
    "one stack on top of the other": tuple(range(12, 20)),
}


def edit_of(odd: Sequence[int], **tags: Any) -> Callable[[int, Dataset], None]:
    def edit(index: int, dataset: Dataset) -> None:
        if index in odd:
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)

    return edit


def refusal(folder: Path) -> str:
    (series,) = scan_in_process(folder).series
    (problem,) = series_problems(series)
    assert (problem.code, problem.severity) == ("two-acquisitions", "error")
    with pytest.raises(UserError) as error:
        read_folder(folder)
    assert problem.what in str(error.value)
    return f"{problem.what}; {problem.remedy}"


@pytest.mark.parametrize("odd", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("keyword", ["EchoTime", "ImageType", "ContrastBolusAgent"])
def test_a_mixture_is_refused_in_any_arrangement(tmp_path: Path, keyword: str, odd: Sequence[int]) -> None:
    write_series(tmp_path, ramp(SHAPE), edit=edit_of(odd, **{keyword: DIFFERENCES[keyword]}))
    message = refusal(tmp_path)
    assert f"mixes acquisitions: {keyword} differs in {len(odd)} of 20 slices" in message
    assert f"leave {len(odd)} of its 20 files out by {keyword} (exclude_series=[{keyword}:PATTERN])" in message


@pytest.mark.parametrize(("keyword", "value"), DIFFERENCES.items())
def test_values_that_all_slices_must_share(tmp_path: Path, keyword: str, value: Any) -> None:
    write_series(tmp_path, ramp(SHAPE), edit=edit_of(ODD, **{keyword: value}))
    assert f"{keyword} differs in 3 of 20 slices" in refusal(tmp_path)


def test_several_differences_are_one_line(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(SHAPE), edit=edit_of(ODD, EchoTime="4.92", EchoNumbers=2, FlipAngle="9", KVP="1"))
    assert "EchoTime, EchoNumbers, FlipAngle and 1 more differ in 3 of 20 slices" in refusal(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda index, dataset: setattr(dataset, "EchoTime", ("10", "10.0", "10.02")[index % 3]),
        lambda index, dataset: setattr(dataset, "RepetitionTime", str(800 + 40 * index)),  # triggered by the heart
        lambda index, dataset: setattr(dataset, "AcquisitionTime", f"10{index:02d}00"),
        lambda index, dataset: setattr(dataset, "TriggerTime", str(10 * index)),
        lambda index, dataset: setattr(dataset, "FrameReferenceTime", str(1000 * (index // 5))),  # PET, bed by bed
        lambda index, dataset: setattr(dataset, "XRayTubeCurrent", 200 + index),
        lambda index, dataset: setattr(dataset, "AcquisitionNumber", index // 2),  # CT in steps
        lambda index, dataset: setattr(dataset, "InstanceNumber", None),
        lambda index, dataset: setattr(dataset, "InstanceNumber", 1),
    ],
)
def test_values_that_vary_within_an_acquisition_are_not_reported(
    tmp_path: Path, edit: Callable[[int, Dataset], None]
) -> None:
    write_series(tmp_path, ramp(SHAPE), edit=edit)
    assert not series_problems(scan_in_process(tmp_path).series[0])
    np.testing.assert_array_equal(read_folder(tmp_path).array, ramp(SHAPE))


def test_two_stacks_that_are_both_numbered_from_one(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(SHAPE), edit=lambda index, dataset: setattr(dataset, "InstanceNumber", index % 10 + 1))
    assert "20 of 20 slices share their InstanceNumber with another one" in refusal(tmp_path)


def test_two_stacks_with_different_acquisition_numbers_only_are_a_warning(tmp_path: Path) -> None:
    edit = edit_of(range(8), AcquisitionNumber=7)
    write_series(tmp_path, ramp(SHAPE), SeriesDescription="t1", edit=edit)
    made = plan(tmp_path)
    (finding,) = made.findings
    assert (finding.severity, finding.code) == ("warning", "dicom-two-acquisitions") and made.cases
    assert finding.what == "series 1: consists of 2 acquisitions (AcquisitionNumber differs)"
    assert "exclude_series=[AcquisitionNumber:PATTERN]" in finding.remedy
    np.testing.assert_array_equal(read_folder(tmp_path).array, ramp(SHAPE))


def test_frames_of_an_enhanced_file_may_mix_too(tmp_path: Path) -> None:
    def two_stacks(dataset: Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence[2:]:
            frame.FrameContentSequence[0].StackID = "2"

    write_enhanced(tmp_path / "stacks" / "e.dcm", ramp(), edit=two_stacks)
    assert "StackID differs in 2 of 4 slices; export each" in refusal(tmp_path / "stacks")

    def two_echoes(dataset: Dataset) -> None:
        for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.MREchoSequence = [Dataset()]
            frame.MREchoSequence[0].EffectiveEchoTime = 7.38 if index else 4.92

    write_enhanced(tmp_path / "echoes" / "e.dcm", ramp(), edit=two_echoes)
    assert "EchoTime differs in 1 of 4 slices" in refusal(tmp_path / "echoes")


def test_one_of_two_contrasts_half_a_step_apart_can_be_left_out(tmp_path: Path) -> None:
    array = ramp(SHAPE)
    edit = edit_of(ARRANGEMENTS["alternating, half a step apart"], EchoTime="80")
    write_series(tmp_path, array, axial((1, 1, 3)), SeriesDescription="t1", edit=edit)
    assert codes_of(plan(tmp_path)) == [("error", "dicom-two-acquisitions")]
    made = plan(tmp_path, exclude_series=[{"EchoTime": "^80"}])
    assert codes_of(made) == [("note", "dicom-excluded")]
    assert made.findings[0].what == "series 1: exclude_series leaves out 10 of its 20 files"
    volume = read_series(made.cases[0].series[0])
    np.testing.assert_array_equal(volume.array, array[:, :, ::2])
    assert volume.spacing == pytest.approx((1, 1, 6))


def test_a_localizer_within_a_series_can_be_left_out(tmp_path: Path) -> None:
    array = ramp((6, 5, 8))
    write_series(tmp_path, array, modality="CT", SeriesDescription="t1")
    scout = {"SeriesInstanceUID": uid("series", "MADE-UP-1", 1), "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    sideways = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "SOPInstanceUID": uid("scout")}
    for size in ((6, 5, 1), (40, 90, 1)):
        write_series(tmp_path / "scout", ramp(size), modality="CT", SeriesDescription="t1", **scout, **sideways)
        (finding,) = plan(tmp_path).findings
        assert finding.code == ("dicom-mixed-orientation" if size[0] == 6 else "dicom-mixed-shape")
        assert "leave 1 of its 9 files out by ImageType or ImageOrientationPatient" in finding.remedy
        made = plan(tmp_path, exclude_series=[{"ImageType": "localizer"}])
        assert codes_of(made) == [("note", "dicom-excluded")]
        np.testing.assert_array_equal(read_series(made.cases[0].series[0]).array, array)


def test_one_of_two_equally_frequent_orientations_can_be_left_out(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(), SeriesDescription="t1")
    folder, same = tmp_path / "other", uid("series", "MADE-UP-1", 1)
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "SeriesInstanceUID": same, "EchoTime": "90"}
    write_series(folder, ramp(), number=2, SeriesDescription="t1", **sagittal)
    (finding,) = plan(tmp_path).findings
    assert finding.code == "dicom-mixed-orientation"
    assert "leave 4 of its 8 files out by EchoTime or SeriesNumber" in finding.remedy


def test_a_report_among_the_slices_is_reported(tmp_path: Path) -> None:
    report = "1.2.840.10008.5.1.4.1.1.88.11"

    def edit(index: int, dataset: Dataset) -> None:
        if index == 3:
            dataset.SOPClassUID = report
            for keyword in ("Rows", "Columns", "PixelData"):
                delattr(dataset, keyword)

    write_series(tmp_path, ramp(), SeriesDescription="t1", edit=edit)
    (finding,) = plan(tmp_path).findings
    assert finding.code == "dicom-not-an-image"
    assert finding.what == "series 1: holds 1 files that are not images (Basic Text SR Storage)"
    made = plan(tmp_path, exclude_series=[{"SOPClassUID": report}])
    assert len(made.cases[0].series[0].instances) == 3 and codes_of(made) == [("note", "dicom-excluded")]


def test_a_whole_series_and_a_label_can_be_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ramp(), number=1, SeriesDescription="t1")
    write_series(tmp_path / "b", ramp(), number=2, SeriesDescription="t1 repeat")
    assert codes_of(plan(tmp_path)) == [("error", "dicom-two-series")]
    made = plan(tmp_path, exclude_series=["repeat"])
    assert [series.number for series in made.cases[0].series] == [1]
    assert codes_of(made) == [("note", "dicom-excluded")]


def test_an_exclusion_that_matches_nothing_is_a_warning_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(), SeriesDescription="t1")
    made = plan(tmp_path, exclude_series=["scout", {"ImageType": "LOCALIZR", "Modality": "MR"}])
    assert codes_of(made) == [("warning", "dicom-excluded")] * 2 and made.cases
    assert made.findings[1].what == "exclude_series: no file matches ImageType:LOCALIZR, Modality:MR"
    with pytest.raises(UserError, match="exclude_series: ImageTyp is not a keyword .*; did you mean Image"):
        plan(tmp_path, exclude_series=[{"ImageTyp": "x"}])
    with pytest.raises(UserError, match="exclude_series.* is no"):
        plan(tmp_path, exclude_series=["*"])


def test_exclusions_from_the_rules_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("exclude_series:\n  - {ImageType: localizer, Modality: CT}\n  - scout\n")
    rules = with_excluded(read_rules(file), ["EchoTime:^80", "a repeat"])
    assert rules.exclude_series == (
        {"ImageType": "localizer", "Modality": "CT"},
        "scout",
        {"EchoTime": "^80"},
        "a repeat",
    )
    assert with_excluded(NO_RULES, []) == NO_RULES and rules.source != COMMAND_LINE
    file.write_text("exclude_series: {ImageType: localizer}\n")
    with pytest.raises(UserError, match=r"exclude_series is not a list of rules; write them as - \{ImageType"):
        read_rules(file)
