"""Finding the cohort that the options name, and the message if it does not exist."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from medaug.cohort.folds import kfold, splits_final
from medaug.data.cohorts import find_cohort, find_root, name_subjects, require_data, split_cohort
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.layouts import read_layout
from medaug.options import DataOptions, IngestOptions


def test_missing_data_give_one_line_with_remedies(tmp_path):
    places = [str(tmp_path / "here"), str(tmp_path / "there")]
    options = DataOptions(name="brats", roots=places, source="register at example.org")
    with pytest.raises(UserError) as caught:
        find_cohort(options, tmp_path / "phantom")
    line = str(caught.value)
    assert "\n" not in line
    assert all(part in line for part in (*places, "register at example.org", "data=phantom"))
    assert not list(tmp_path.iterdir())


def test_the_first_existing_folder_is_used(tmp_path):
    (tmp_path / "second").mkdir()
    (tmp_path / "third").mkdir()
    options = DataOptions(roots=[str(tmp_path / name) for name in ("first", "second", "third")])
    assert find_root(options) == tmp_path / "second"


@pytest.mark.slow
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


def test_no_data_at_all_give_one_line(tmp_path):
    with pytest.raises(UserError, match="no scans are named; give data.manifest=FILE.json .* or data.roots"):
        find_cohort(DataOptions(), tmp_path)
    with pytest.raises(UserError, match=r"no folder /absent\. Or run"):
        find_root(DataOptions(name="mine", roots=["/absent"]))


def _msd(root, num):
    """The files may be empty, because these tests never read them."""
    root.mkdir(parents=True)
    training = [{"image": f"i/case_{n:02d}.nii.gz", "label": f"l/case_{n:02d}.nii.gz"} for n in range(num)]
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def _with_sites(root):
    path = _msd(root, 20) / "dataset.json"
    content = json.loads(path.read_text())
    for n, entry in enumerate(content["training"]):
        entry["attributes"] = {"site": "AB"[n % 2], "grade": n}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("stored", [True, False], ids=["manifest", "folder"])
def test_attributes_outlast_splits_folds_and_hidden_labels(tmp_path, stored):
    path = _with_sites(tmp_path / "msd")
    where = {"manifest": str(path)} if stored else {"roots": [str(path.parent)]}
    cohort = find_cohort(DataOptions(**where, folds=3, fold=1, labelled=4), tmp_path)
    assert sum(case.label is not None for case in cohort.split("train")) == 4 and cohort.split("val")
    assert {case.name: case.attributes for case in cohort.cases} == {
        f"case_{n:02d}": {"site": "AB"[n % 2], "grade": float(n)} for n in range(20)
    }


def test_an_attribute_that_no_manifest_has_is_refused_before_anything_is_read(tmp_path):
    path = _with_sites(tmp_path / "msd")
    require_data(DataOptions(manifest=str(path), attributes=["site", "spacing"]))
    with pytest.raises(UserError, match="no training case has scanner; there are grade, site, spacing"):
        require_data(DataOptions(manifest=str(path), attributes=["site", "scanner"]))


def test_folds_partition_the_cases_outside_the_test_split(tmp_path):
    root = str(_msd(tmp_path / "msd", 20))
    plain = find_cohort(DataOptions(roots=[root]), tmp_path)
    inside = {c.name for c in plain.cases if c.split != "test"}
    validated = []
    for fold in range(4):
        manifest = find_cohort(DataOptions(roots=[root], folds=4, fold=fold), tmp_path)
        assert manifest.split("test") == plain.split("test")
        val = {c.name for c in manifest.split("val")}
        assert val | {c.name for c in manifest.split("train")} == inside and 0 < len(val) <= 4
        validated += val
    assert sorted(validated) == sorted(inside)
    folds = kfold(plain.cases, 4, 0)
    assert val == {c.name for c in plain.cases if folds.get(c.subject) == 3}


def test_folds_and_hidden_labels_of_a_committed_manifest(tmp_path):
    root = _msd(tmp_path / "msd", 20)
    plain = find_cohort(DataOptions(roots=[str(root)]), tmp_path)
    plain.save(tmp_path / "cohort.json")
    options = DataOptions(manifest=str(tmp_path / "cohort.json"), folds=2, fold=1, labelled=3, labelled_seed=5)
    manifest = find_cohort(options, tmp_path)
    assert sum(c.label is not None for c in manifest.split("train")) == 3
    assert len(manifest.split("train")) == len(manifest.split("val")) == 8
    assert all(c.label is not None for c in (*manifest.split("val"), *manifest.split("test")))
    manifest.save(tmp_path / "train/manifest.json")
    saved = json.loads((tmp_path / "train/manifest.json").read_text())["training"]
    assert sum("label" in entry for entry in saved if entry["split"] == "train") == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"folds": 5, "fold": 5}, "fold=5: there are folds 0 to 4"),
        ({"folds": 17}, "folds=17: only 16 subjects"),
        ({"labelled": 15}, "labelled=15: 14 training subjects have labels"),
        ({"labelled": 0}, "labelled=0: 14 training subjects have labels"),
    ],
)
def test_impossible_folds_and_numbers_are_refused(tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        find_cohort(DataOptions(roots=[str(_msd(tmp_path / "msd", 20))], **options), tmp_path)


def _brats(root, names, suffixes):
    root.mkdir()
    for name in names:
        for suffix in suffixes:
            (root / f"{name}{suffix}.nii.gz").touch()
    return str(root)


def test_proposed_labels_are_logged_and_declared_ones_are_not(tmp_path, caplog):
    caplog.set_level(logging.INFO, "medaug.data.cohorts")
    names = [f"BraTS20_{n:03d}" for n in range(10)]
    root = _brats(tmp_path / "old", names, ("_t1", "_t1ce", "_t2", "_flair", "_seg"))
    manifest = find_cohort(DataOptions(roots=[root]), tmp_path)
    assert dict(manifest.schema.regions)["tumour core"] == (1, 4)
    (record,) = [r for r in caplog.records if r.name == "medaug.data.cohorts"]
    assert "0 background, 1 necrotic core, 2 oedema, 4 enhancing tumour" in record.getMessage()
    caplog.clear()
    find_cohort(DataOptions(roots=[str(_msd(tmp_path / "msd", 10))]), tmp_path)
    assert not [r for r in caplog.records if r.name == "medaug.data.cohorts"]


def test_new_brats_names_need_their_year(tmp_path):
    names = [f"BraTS-GLI-{n:05d}-{visit}" for n in range(10) for visit in (100, 101)]
    root = _brats(tmp_path / "new", names, ("-t1n", "-t1c", "-t2w", "-t2f", "-seg"))
    with pytest.raises(UserError, match="data.layout="):
        find_cohort(DataOptions(roots=[root]), tmp_path)
    manifest = find_cohort(DataOptions(roots=[root], layout="brats2024"), tmp_path)
    assert len({c.subject for c in manifest.cases}) == 10 and 4 in manifest.schema.values


def test_an_incomplete_case_keeps_training_from_starting(tmp_path):
    root = _brats(tmp_path / "old", ["a", "b"], ("_t1", "_t1ce", "_t2"))
    with pytest.raises(UserError, match="FLAIR of case a is missing; .*1 more error"):
        find_cohort(DataOptions(roots=[root]), tmp_path)


def test_subjects_and_splits_are_read_from_files(tmp_path):
    manifest = read_layout(_msd(tmp_path / "msd", 8)).valid_manifest()
    (tmp_path / "subjects.csv").write_text(
        "case,subject\n" + "".join(f"case_{n:02d},patient {n // 2}\n" for n in range(8))
    )
    options = IngestOptions(subjects=str(tmp_path / "subjects.csv"), val_fraction=0.25, test_fraction=0.25)
    manifest = name_subjects(manifest, options)
    split = split_cohort(manifest, options)
    assert len(split.subjects("val")) == len(split.subjects("test")) == 1 and len(split.split("test")) == 2
    (tmp_path / "splits_final.json").write_text(json.dumps(splits_final(split.cases, 3, 1)))
    options.splits, options.splits_fold = str(tmp_path / "splits_final.json"), 2
    with pytest.raises(UserError, match="is not in this file"):  # the test cases, of which nnU-Net knows nothing
        split_cohort(manifest, options)
    rows = "".join(f"{c.name},{c.split}\n" for c in split.cases)
    (tmp_path / "splits.csv").write_text(f"case,split\n{rows}")
    options.splits = str(tmp_path / "splits.csv")
    with pytest.raises(UserError, match=r"splits_fold=2: .*splits\.csv has no folds"):
        split_cohort(manifest, options)
    options.splits_fold = 0
    assert split_cohort(manifest, options) == split
    options.subject_pattern = "(.)"
    with pytest.raises(UserError, match="subjects and subject_pattern both"):
        name_subjects(manifest, options)
