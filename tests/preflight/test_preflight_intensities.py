"""What preflight says of intensities: values that do not fit a window, and scans unlike their cohort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import AFFINE, SCHEMA, SHAPE, path_of, scan, write_case, write_good_cohort
from planted import only

from medaug.cohort import Manifest
from medaug.imaging.intensity import Intensity
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volume
from medaug.preflight import Expectations, check


def hounsfield(array: np.ndarray) -> np.ndarray:
    return array.astype("f4") / array.max() * 1500 - 1000


WINDOW = {
    "intercept missing": (lambda a: hounsfield(a) + 1000, "warning", "none below 0, although air is -1000"),
    "no air": (lambda a: np.maximum(hounsfield(a), -150), "warning", "none below -200"),
    "normalised": (lambda a: hounsfield(a) / 1000, "error", "too narrow a range for Hounsfield units"),
    "thousandfold": (lambda a: hounsfield(a) * 1000, "error", "too high for Hounsfield units"),
    "padding": (lambda a: np.where(hounsfield(a) < -900, -32768, hounsfield(a)), "warning", "the lowest are no"),
}


@pytest.mark.parametrize("name", WINDOW)
def test_ct_that_is_not_in_hounsfield_units(tmp_path: Path, in_process: None, name: str) -> None:
    spoil, severity, words = WINDOW[name]
    cases = [replace(write_case(tmp_path, f"c{i}", i), images=(f"c{i}_t1.nii.gz",)) for i in range(2)]
    for index, case in enumerate(cases):
        array = scan(index)["t1"]
        write_volume(path_of(tmp_path, case, "t1"), (spoil if index else hounsfield)(array).astype("f4"), AFFINE)
    manifest = Manifest("ct", "", ("CT",), SCHEMA, tuple(cases), str(tmp_path))
    finding = only(check(manifest, expected=Expectations(Intensity("window", window=(-1000, 1000)))))
    assert (finding.case, finding.severity, finding.code) == ("c1", severity, "ct-not-hounsfield")
    assert words in finding.what
    assert check(manifest).findings == ()  # without a window, units do not matter


@pytest.mark.slow
def test_a_window_without_any_values(good: Manifest, in_process: None) -> None:
    findings = check(good, expected=Expectations(Intensity("window", window=(60000, 70000)))).findings
    assert {(f.code, f.severity) for f in findings} == {("outside-window", "error")}
    assert len(findings) == 24


def test_a_narrow_window_does_not_require_hounsfield_units(tmp_path: Path, in_process: None) -> None:
    case = replace(write_case(tmp_path, "c", 0), images=("c_t1.nii.gz",))
    array = scan(0)["t1"].astype("f4")
    write_volume(path_of(tmp_path, case, "t1"), (array - array.mean()) / array.std(), AFFINE)
    manifest = Manifest("mr", "", ("T1",), SCHEMA, (case,), str(tmp_path))
    assert check(manifest, expected=Expectations(Intensity("window", window=(-3, 3)))).findings == ()


@pytest.mark.slow
def test_outliers_are_searched_after_normalisation(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path)
    path = path_of(tmp_path, manifest.cases[5], "t1")
    write_volume(path, read_volume(path).array.astype("f4") * 3000 + 77, AFFINE)
    assert check(manifest).findings == ()  # another unit does not matter if every volume is scaled by itself
    strange = check(manifest, expected=Expectations(Intensity("window", window=(0, 3e6)))).findings
    assert [(f.case, f.code) for f in strange if f.code == "unlike-cohort"] == [("good_05", "unlike-cohort")]


@pytest.mark.slow
def test_outliers_need_enough_scans(tmp_path: Path, in_process: None) -> None:
    manifest = write_good_cohort(tmp_path, 9)
    path = path_of(tmp_path, manifest.cases[6], "t2")
    write_volume(path, np.random.default_rng(0).normal(size=SHAPE).astype("f4"), AFFINE)
    assert check(manifest).findings == ()
