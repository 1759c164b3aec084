"""nnU-Net v2 raw folders; nnU-Net's own code is the oracle for the files of each case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medaug.errors import UserError
from medaug.imaging.reading import read_images, read_label
from medaug.layouts import detect_layout, read_layout
from medaug.layouts.rules import Rules

SHAPE = (3, 4, 5)
REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4}


def _dataset(root: Path, cases: list[str], channels: int = 2, ending: str = ".nii.gz", **changes: object) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True, exist_ok=True)

    def save(file: str, values: int) -> None:
        array = rng.integers(0, values, SHAPE).astype(np.uint8)
        if ending in {".nii", ".nii.gz"}:
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / file)
        else:
            import SimpleITK

            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(root / file))

    for case in cases:
        for channel in range(channels):
            save(f"imagesTr/{case}_{channel:04d}{ending}", 200)
        save(f"labelsTr/{case}{ending}", 2)
    save(f"imagesTs/test_0000{ending}", 200)
    (root / "imagesTr/._a_0000.nii.gz").touch()
    content: dict[str, object] = {
        "channel_names": {str(channel): f"modality {channel}" for channel in range(channels)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(content | changes))
    return root


PAIRING = """
import json, sys
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
print(json.dumps(get_filenames_of_train_images_and_targets(sys.argv[1])))
"""
LABELS = """
import json, sys
from nnunetv2.utilities.label_handling.label_handling import LabelManager
manager = LabelManager(json.loads(sys.argv[1]), [1, 2, 3])
print(json.dumps([manager.all_regions, manager.ignore_label, [int(value) for value in manager.all_labels]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_cases_agree_with_nnunet(tmp_path: Path, nnunet: Callable[..., Any], ending: str) -> None:
    root = _dataset(tmp_path / "Dataset001_Toy", ["a_1", "a_10", "BraTS-GLI-00005-101"], ending=ending)
    (root / "imagesTr/._a_0000.nii.gz").unlink()  # nnU-Net would read it as a case
    assert detect_layout(root) == "nnunet"
    layout = read_layout(root)
    assert not layout.proposed and [(found.severity, found.code) for found in layout.problems] == [
        ("note", "unused-file")  # of the test images
    ]
    manifest = layout.valid_manifest()
    expected = nnunet(PAIRING, root)
    assert {
        case.name: {
            "images": [str(path) for path in manifest.image_paths(case)],
            "label": str(manifest.label_path(case)),
        }
        for case in manifest.cases
    } == expected
    assert manifest.name == "Dataset001_Toy" and manifest.modalities == ("modality 0", "modality 1")
    assert manifest.cases[0].subject == "BraTS-GLI-00005"
    for case in manifest.cases:
        assert read_images(manifest.image_paths(case))[0].shape[0] == 2
        label = manifest.label_path(case)
        assert label is not None
        assert set(np.unique(manifest.schema.to_indices(read_label(label).array, "label"))) == {0, 1}


@pytest.mark.slow
def test_regions_agree_with_nnunet(tmp_path: Path, nnunet: Callable[..., Any]) -> None:
    root = _dataset(tmp_path / "d", ["a"], labels=REGIONS, regions_class_order=[1, 2, 3])
    schema = read_layout(root).valid_manifest().schema
    regions, ignore, values = nnunet(LABELS, json.dumps(REGIONS))
    assert [list(members) for _, members in schema.regions] == regions
    assert schema.ignore == ignore == 4
    assert list(schema.values) == values
    assert schema.names == ("background", "label 1", "label 2", "enhancing tumor")


@pytest.mark.parametrize("lesion", [1, [1]])
def test_one_value_per_label_gives_no_regions(tmp_path: Path, lesion: object) -> None:
    root = _dataset(tmp_path / "d", ["a"], labels={"background": 0, "lesion": lesion})
    assert read_layout(root).manifest.schema.to_mapping() == {"labels": {"0": "background", "1": "lesion"}}


def test_every_fault_is_found_in_one_pass(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "d", ["a", "b", "c", "d"])
    (root / "imagesTr/b_0001.nii.gz").unlink()
    (root / "labelsTr/c.nii.gz").unlink()
    for channel in range(2):
        (root / f"imagesTr/d_{channel:04d}.nii.gz").unlink()
    (root / "imagesTr/a_0002.nii.gz").touch()
    (root / "imagesTr/e.nii.gz").touch()
    (root / "imagesTr/f_0000.mha").touch()
    layout = read_layout(root)
    assert [(case.name, case.label is None) for case in layout.manifest.cases] == [("a", False), ("c", True)]
    found = {(finding.code, finding.case, finding.severity) for finding in layout.problems}
    assert found == {
        ("missing-modality", "b", "error"),
        ("missing-label", "c", "warning"),
        ("unpaired-label", "d", "error"),
        ("unknown-modality", "a_0002", "error"),
        ("unknown-modality", "e", "error"),
        ("other-ending", "d", "warning"),
        ("unused-file", "d", "note"),  # imagesTs
    }
    text = "\n".join(map(str, layout.problems))
    for file in ("imagesTr/b_0001.nii.gz", "labelsTr/c.nii.gz", "labelsTr/d.nii.gz", "imagesTr/f_0000.mha"):
        assert str(root / file) in text


def test_a_wrong_numtraining_is_a_warning(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "d", ["a", "b"], numTraining=3)
    finding, *notes = read_layout(root).problems
    assert {(note.severity, note.code) for note in notes} == {("note", "unused-file")}
    assert (finding.severity, finding.code) == ("warning", "case-count")
    assert "numTraining is 3, but there are 2 cases" in finding.what


@pytest.mark.slow
def test_files_listed_in_dataset_json_may_be_elsewhere(
    tmp_path: Path, nnunet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _dataset(tmp_path / "raw/Dataset001_A", ["a", "b"], channels=1)
    monkeypatch.setenv("OTHER", str(tmp_path / "raw/Dataset001_A"))
    entries = {
        "x": {"images": ["../Dataset001_A/imagesTr/a_0000.nii.gz"], "label": "../Dataset001_A/labelsTr/a.nii.gz"},
        "y": {"images": ["${OTHER}/imagesTr/b_0000.nii.gz"], "label": "${OTHER}/labelsTr/b.nii.gz"},
    }
    root = tmp_path / "raw/Dataset002_B"
    root.mkdir()
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
        "numTraining": 2,
        "dataset": entries,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    manifest = read_layout(root).valid_manifest()
    expected = nnunet(PAIRING, root)
    assert [case.name for case in manifest.cases] == ["x", "y"]
    for case in manifest.cases:
        assert [str(path) for path in manifest.image_paths(case)] == expected[case.name]["images"]
        assert str(manifest.label_path(case)) == expected[case.name]["label"]

    entries["z"] = {"images": ["a.nii.gz", "b.nii.gz"], "label": "c.nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": 3}))
    assert [(f.case, f.code) for f in read_layout(root).problems] == [("z", "missing-modality")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_ending": ".png"}, "file_ending .png cannot be read; convert"),
        ({"file_ending": ["x"]}, "cannot be read; convert"),
        ({"file_ending": ".nrrd"}, "no files CASE_0000.nrrd"),
        ({"channel_names": {"1": "CT"}}, "channel_names must number the channels from 0"),
        ({"channel_names": ["CT"]}, "channel_names must number"),
        ({"labels": ["background"]}, "labels is not a mapping"),
        ({"labels": {"background": 0, "a": "1"}}, "label a is '1'; write a whole number"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "labels a and b are both 1"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "label ignore is"),
        ({"labels": {"a": 1}}, "background"),
        ({"dataset": []}, "dataset is empty"),
        ({"dataset": {"a": {"images": "x.nii.gz"}}}, "dataset lacks the files of case a; write"),
    ],
)
def test_a_bad_dataset_json_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    root = _dataset(tmp_path / "d", ["a"], **changes)
    with pytest.raises(UserError, match=reason) as error:
        read_layout(root)
    assert "\n" not in str(error.value) and "; " in str(error.value)


def test_an_msd_task_is_not_nnunet_and_rules_name_the_labels(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "d", ["a"], labels={"broken": 1})
    rules = Rules(schema={"labels": {"0": "background", "1": "tumour"}})
    assert read_layout(root, "nnunet", rules).manifest.schema.names == ("background", "tumour")
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T1"}, "labels": {}, "training": []}))
    assert detect_layout(root) == "msd"
    with pytest.raises(UserError, match="not nnU-Net v2's"):
        read_layout(root, "nnunet")
