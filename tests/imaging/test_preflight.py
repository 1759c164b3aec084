"""Preflight: no false finding on good data, each planted fault found by case, kind and severity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medaug.cohort import Case, LabelSchema, Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.preflight import Finding, check

SHAPE = (6, 7, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SCHEMA = LabelSchema(((0, "background"), (1, "core"), (4, "rim")))


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32)


def _label() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 2:4] = 1
    label[3, 3, 3] = 4
    return label


@pytest.fixture
def cohort(tmp_path: Path) -> Manifest:
    cases = []
    for number in range(4):
        name = f"case_{number}"
        for modality in ("t1", "t2"):
            write_volume(tmp_path / f"{name}_{modality}.nii.gz", _image(number), AFFINE)
        write_volume(tmp_path / f"{name}_seg.nii.gz", _label(), AFFINE)
        images = (f"{name}_t1.nii.gz", f"{name}_t2.nii.gz")
        cases.append(Case(name, images, f"{name}_seg.nii.gz", f"p{number}", "test" if number == 3 else "train"))
    return Manifest("planted", "", ("T1", "T2"), SCHEMA, tuple(cases), str(tmp_path))


def _shifted(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def _with(array: np.ndarray, value: float, dtype: str = "float32") -> np.ndarray:
    changed = array.astype(dtype)
    changed[1, 2, 3] = value
    return changed


def test_good_data_has_no_finding(cohort: Manifest) -> None:
    assert check(cohort) == []
    for affine in (_shifted(5e-4), _shifted(-5e-4)):  # within tolerance
        write_volume(Path(cohort.root) / "case_1_seg.nii.gz", _label(), affine)
        assert check(cohort) == []


def _fault_t2(array: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda root: write_volume(root / "case_1_t2.nii.gz", array, affine)


def _fault_seg(array: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda root: write_volume(root / "case_1_seg.nii.gz", array, affine)


def _cut(name: str, length: int) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:length])


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing modality": (
        lambda root: (root / "case_1_t2.nii.gz").unlink(),
        "error",
        "case_1_t2.nii.gz: does not exist",
    ),
    "missing label": (
        lambda root: (root / "case_1_seg.nii.gz").unlink(),
        "error",
        "case_1_seg.nii.gz: does not exist",
    ),
    "empty file": (_cut("case_1_t2.nii.gz", 0), "error", "zero bytes"),
    "truncated image": (_cut("case_1_t2.nii.gz", 300), "error", "cut short"),
    "truncated label": (_cut("case_1_seg.nii.gz", 60), "error", "cut short"),
    "not NIfTI": (
        lambda root: (root / "case_1_t1.nii.gz").write_text("hello"),
        "error",
        "cut short or damaged",
    ),
    "modality shape": (_fault_t2(_image()[1:]), "error", "has shape 5x7x8 against 6x7x8 of case_1_t1"),
    "modality affine": (
        _fault_t2(_image(), _shifted(0.01)),
        "error",
        "lies 0.01 mm away from the grid of case_1_t1",
    ),
    "modality spacing": (_fault_t2(_image(), np.diag([1, 1, 2.1, 1])), "error", "lies 0.7 mm away"),
    "label shape": (_fault_seg(_label()[:, 1:]), "error", "has shape 6x6x8 against 6x7x8 of its image"),
    "label affine": (_fault_seg(_label(), _shifted(1)), "error", "lies 1 mm away from the grid of its image"),
    "label flipped": (_fault_seg(_label(), np.diag([-1, 1, 2, 1])), "error", "lies 10 mm away from the grid"),
    "NaN": (_fault_t2(_with(_image(), np.nan)), "error", "NaN or infinite"),
    "infinity": (_fault_t2(_with(_image(), -np.inf)), "error", "NaN or infinite"),
    "constant": (_fault_t2(np.full(SHAPE, 7, np.int16)), "error", "is constant (every voxel is 7)"),
    "label outside schema": (
        _fault_seg(_with(_label(), 2, "uint8")),
        "error",
        "label values 2 are not in the schema",
    ),
    "label not whole": (_fault_seg(_with(_label(), 0.5)), "error", "label values 0.5 are not in the schema"),
    "label NaN": (_fault_seg(_with(_label(), np.nan)), "error", "label values nan"),
    "empty label": (_fault_seg(np.zeros(SHAPE, np.uint8)), "warning", "background only"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_the_one_finding(cohort: Manifest, fault: str) -> None:
    plant, severity, what = FAULTS[fault]
    plant(Path(cohort.root))
    (finding,) = check(cohort)
    assert (finding.case, finding.severity) == ("case_1", severity)
    assert what in finding.what
    assert finding.remedy
    assert "\n" not in str(finding)


def test_all_faults_are_found_in_one_pass(cohort: Manifest) -> None:
    root = Path(cohort.root)
    _cut("case_0_t1.nii.gz", 0)(root)
    write_volume(root / "case_0_t2.nii.gz", _with(_image(), np.nan), AFFINE)
    write_volume(root / "case_0_seg.nii.gz", np.full(SHAPE, 9, np.uint8), _shifted(1))
    (root / "case_2_seg.nii.gz").unlink()
    found = check(cohort)
    assert [finding.case for finding in found] == ["case_0"] * 4 + ["case_2"]
    for finding, what in zip(
        found, ("zero bytes", "NaN", "1 mm away", "label values 9", "does not exist"), strict=True
    ):
        assert what in finding.what


def test_faults_of_the_manifest(cohort: Manifest) -> None:
    first, second, third, last = cohort.cases
    crossing = replace(cohort, cases=(first, second, third, replace(last, subject="p0")))
    (finding,) = check(crossing)
    assert str(finding) == ("error: planted: subject p0 is in the splits test, train; keep all its cases in one split")
    (finding,) = check(replace(cohort, cases=(first, first)))
    assert "case case_0 occurs 2 times" in finding.what
    (finding,) = check(replace(cohort, cases=(first, replace(second, label=None))))
    assert (finding.severity, finding.what) == ("warning", "1 of 2 cases have no label (the first is case_1)")
    assert check(replace(cohort, cases=tuple(replace(c, label=None) for c in cohort.cases))) == []
    (finding,) = check(replace(cohort, cases=()))
    assert "empty" in finding.what


def test_4d_files(cohort: Manifest) -> None:
    root = Path(cohort.root)
    four = replace(cohort.cases[0], images=("four.nii.gz",))
    manifest = replace(cohort, cases=(four,))
    nib.save(nib.Nifti1Image(np.stack([_image(0), _image(1)], -1), AFFINE), root / "four.nii.gz")
    assert check(manifest) == []
    nib.save(nib.Nifti1Image(np.stack([_image(0)] * 3, -1), AFFINE), root / "four.nii.gz")
    (finding,) = check(manifest)
    assert finding == Finding("case_0", "error", "3 volumes for 2 modalities", "give one each of T1, T2")
    nib.save(nib.Nifti1Image(np.stack([_image(0), np.zeros(SHAPE)], -1), AFFINE), root / "four.nii.gz")
    (finding,) = check(manifest)
    assert "four.nii.gz volume 1 is constant" in finding.what


def test_progress_goes_to_standard_error(cohort: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    check(cohort)
    assert capsys.readouterr().out == ""


def test_real_hippocampus_has_no_error(medaug_data: Path) -> None:
    committed = Path(__file__).parents[2] / "data_manifests" / "hippocampus.json"
    manifest = Manifest.load(committed, root=Path(medaug_data) / "Task04_Hippocampus")
    assert len(manifest.cases) == 199
    assert check(manifest) == []
