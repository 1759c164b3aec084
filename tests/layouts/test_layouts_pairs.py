"""A folder of pairs: files are paired by name, never by order."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medaug.errors import UserError
from medaug.layouts import read_layout
from medaug.layouts.rules import NO_RULES, Rules, with_pairs

LABELS = {"labels": {"0": "background", "1": "tumour"}}
CLASSES = ["background", "tumour"]


def _save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, np.uint8), np.eye(4)), path)


def _value(path: Path | None) -> int:
    assert path is not None
    return int(np.asanyarray(nib.load(path).dataobj).flat[0])  # type: ignore[attr-defined]


def test_pairs_share_a_case_although_their_sorted_orders_differ(tmp_path: Path) -> None:
    # Sorted images are p10 p2 p3; the labels 010 002 003 have names that sort in reverse.
    for number in (2, 3, 10):
        _save(tmp_path / f"scans/day{number % 3}/p{number}.nii.gz", number)
        _save(tmp_path / f"masks/{100 - number}_of_p{number}.nii", number)
    (tmp_path / "scans/._p2.nii.gz").touch()
    rules = with_pairs(NO_RULES, "scans/**/*.nii.gz", "masks/*.nii", r"p(\d+)\.nii", CLASSES)
    layout = read_layout(tmp_path, rules=rules)  # the rules imply layout pairs
    assert layout.name == "pairs" and not layout.proposed and layout.problems == ()
    manifest = layout.valid_manifest()
    assert [case.name for case in manifest.cases] == ["10", "2", "3"]
    assert manifest.modalities == ("image",) and manifest.schema.names == ("background", "tumour")
    for case in manifest.cases:
        (image,) = manifest.image_paths(case)
        assert _value(image) == _value(manifest.label_path(case)) == int(case.name)


def test_several_modalities_and_a_label_in_one_folder(tmp_path: Path) -> None:
    for index, case in enumerate(["a", "b"]):
        for offset, kind in enumerate(["t1", "flair", "seg"]):
            _save(tmp_path / case / f"{case}_{kind}.nii.gz", 10 * index + offset)
    (tmp_path / "b/b_seg.nii.gz").unlink()
    rules = Rules({"T1": "*/*_t1.*", "FLAIR": "*/*_flair.*"}, "*/*_seg.*", "^([^/]+)/", schema=LABELS)
    manifest = read_layout(tmp_path, "pairs", rules).valid_manifest()
    assert manifest.modalities == ("T1", "FLAIR")
    assert [(case.images, case.label) for case in manifest.cases] == [
        (("a/a_t1.nii.gz", "a/a_flair.nii.gz"), "a/a_seg.nii.gz"),
        (("b/b_t1.nii.gz", "b/b_flair.nii.gz"), None),
    ]


def test_without_a_pattern_the_name_is_the_case_and_labels_are_not_images(tmp_path: Path) -> None:
    for case in ("a", "BraTS-GLI-00005-100"):
        _save(tmp_path / f"{case}.nii.gz", 1)
        _save(tmp_path / f"seg/{case}.nii.gz", 1)
    manifest = read_layout(
        tmp_path, "pairs", with_pairs(NO_RULES, "**/*.nii.gz", "seg/*", None, CLASSES)
    ).valid_manifest()
    assert [(case.name, case.subject, case.label) for case in manifest.cases] == [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005", "seg/BraTS-GLI-00005-100.nii.gz"),
        ("a", "a", "seg/a.nii.gz"),
    ]


def test_every_fault_is_found_in_one_pass(tmp_path: Path) -> None:
    for name in ("a_t1", "a_t2", "b_t1", "c_t1", "c_t2", "c_again_t1", "a_seg", "d_seg", "a_old_seg"):
        _save(tmp_path / f"{name}.nii.gz", 1)
    rules = Rules({"T1": "*_t1.*", "T2": "*_t2.*"}, "*_seg.*", "^([a-z])_", schema=LABELS)
    layout = read_layout(tmp_path, "pairs", rules)
    assert [case.name for case in layout.manifest.cases] == ["a", "c"]
    found = {(finding.case, finding.code): finding.what for finding in layout.problems}
    assert found.keys() == {
        ("a", "duplicate-file"),
        ("b", "missing-modality"),
        ("c", "duplicate-file"),
        ("d", "unpaired-label"),
    }
    assert all(finding.severity == "error" for finding in layout.problems)
    assert "c_again_t1.nii.gz" in found["c", "duplicate-file"] and "c_t1.nii.gz" in found["c", "duplicate-file"]
    assert "a_old_seg.nii.gz" in found["a", "duplicate-file"] and "a_seg.nii.gz" in found["a", "duplicate-file"]
    assert "d_seg.nii.gz" in found["d", "unpaired-label"]
    assert "T2 of case b is missing" in found["b", "missing-modality"]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Rules(schema=LABELS), "no images are named; give images=GLOB"),
        (Rules({"T1": "*_t1.*"}), r"values have no names; .*classes=\[background,tumour\].* never guessed"),
        (Rules(schema=LABELS, source="r.yaml"), "r.yaml: no images are named; give images=GLOB"),
        (
            Rules({"T1": "*_ct.*"}, schema=LABELS, source="r.yaml"),
            r"no file matches \*_ct\.\* for T1 .*; check the glob in r.yaml",
        ),
        (Rules({"T1": "/data/*.nii"}, schema=LABELS), "T1: /data/.* is not a path below root"),
        (Rules({"T1": "C:/data/*.nii"}, schema=LABELS), "is not a path below root"),
        (Rules({"T1": "*_t1.*"}, "../labels/*", schema=LABELS), "label: ../labels/.* is not a path below root"),
        (Rules({"T1": "*_ct.*"}, schema=LABELS), r"no file matches \*_ct\.\* for T1"),
        (Rules({"T1": "*_t1.*"}, "labels/*", schema=LABELS), "no file matches labels/. for label"),
        (Rules({"T1": "*_t1.*"}, case=r"case_(\d+)", schema=LABELS), r"a_t1\.nii\.gz: the pattern .* finds no group 1"),
        (Rules({"T1": "*_t1.*"}, case="^(x)?", schema=LABELS), "finds no group 1"),
        (Rules({"T1": "sub/*"}, case="(.*)_t1", schema=LABELS), "group 1 of .* is sub/b, which contains a slash"),
        (Rules({"T1": "*_t1.*", "T1ce": "a_*"}, schema=LABELS), "is both T1 and T1ce"),
        (Rules({"T1": {"EchoTime": "5"}}, schema=LABELS), "modality T1 is not a glob"),
    ],
)
def test_rules_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, rules: Rules, reason: str) -> None:
    _save(tmp_path / "a_t1.nii.gz", 1)
    _save(tmp_path / "sub/b_t1.nii.gz", 1)
    with pytest.raises(UserError, match=reason) as error:
        read_layout(tmp_path, "pairs", rules)
    assert "\n" not in str(error.value) and "; " in str(error.value)
