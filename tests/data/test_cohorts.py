"""The cohort that the options name, and the line a user reads when it is not there."""

from __future__ import annotations

import numpy as np
import pytest

from medaug.data.cohorts import find_cohort, find_root
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.options import DataOptions


def test_missing_data_is_one_line_with_the_ways_out(tmp_path):
    places = [str(tmp_path / "here"), str(tmp_path / "there")]
    options = DataOptions(name="brats", roots=places, source="register at example.org")
    with pytest.raises(UserError) as caught:
        find_cohort(options, tmp_path / "phantom")
    line = str(caught.value)
    assert "\n" not in line
    assert all(part in line for part in (*places, "register at example.org", "data=phantom"))
    assert not list(tmp_path.iterdir())


def test_first_folder_that_exists_is_taken(tmp_path):
    (tmp_path / "second").mkdir()
    (tmp_path / "third").mkdir()
    options = DataOptions(roots=[str(tmp_path / name) for name in ("first", "second", "third")])
    assert find_root(options) == tmp_path / "second"


def test_phantoms_are_marked_split_by_subject_and_made_once(tmp_path):
    options = DataOptions(
        name="phantom",
        layout="phantom",
        phantom_subjects=5,
        phantom_side=32,
        val_fraction=0.2,
        test_fraction=0.2,
    )
    manifest = find_cohort(options, tmp_path / "phantom")
    assert manifest.phantom and manifest.name == "phantom"
    assert {split: len(manifest.split(split)) for split in ("train", "val", "test")} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert find_cohort(options, tmp_path / "phantom") == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")} == times


def test_scans_of_one_subject_stay_together(tmp_path):
    """In the hippocampus cohort the scans 2k-1 and 2k are the two sides of one head."""
    for folder in ("imagesTr", "labelsTr"):
        for number in range(1, 21):
            write_volume(tmp_path / folder / f"hippo_{number:03d}.nii.gz", np.zeros((4, 4, 4), np.uint8), np.eye(4))
    pairs = ", ".join(
        f'{{"image": "./imagesTr/hippo_{n:03d}.nii.gz", "label": "./labelsTr/hippo_{n:03d}.nii.gz"}}'
        for n in range(1, 21)
    )
    (tmp_path / "dataset.json").write_text(
        f'{{"name": "h", "modality": {{"0": "MRI"}}, "labels": {{"0": "background", "1": "a"}}, "training": [{pairs}]}}'
    )
    options = DataOptions(
        roots=[str(tmp_path)],
        subject_pattern=r"hippo_(\d+)",
        subject_consecutive=2,
        val_fraction=0.2,
        test_fraction=0.3,
    )
    manifest = find_cohort(options, tmp_path)
    split = {int(case.name.split("_")[1]): case.split for case in manifest.cases}
    assert all(split[2 * k - 1] == split[2 * k] for k in range(1, 11))
    assert len(manifest.subjects("val")) == 2 and len(manifest.subjects("test")) == 3
