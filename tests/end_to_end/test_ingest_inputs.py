"""`python -m medaug.ingest` on folders of NIfTI: layouts, labels, subjects, splits and folds."""

from __future__ import annotations

import json
from collections.abc import Mapping

import faults
import numpy as np
import pytest
import yaml
from ingest_files import (
    BRATS_2023,
    PAIRS,
    QUICK,
    assert_nothing_but,
    finding_lines,
    snapshot,
    splits,
    write_brats,
    write_csv,
    write_pairs,
)
from test_bad_input import assert_refused

from medaug.cohort.manifest import Manifest
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_label, read_volume


@pytest.mark.slow
def test_labels_that_follow_from_file_names_must_be_confirmed(stage, ingested, tmp_path):
    before = snapshot(write_brats(tmp_path / "data", [f"BraTS20_Training_{i:03d}" for i in range(6)]))
    proposal = "0 background, 1 necrotic core, 2 oedema, 4 enhancing tumour; confirm them with accept_labels=true"
    assert_refused(stage("ingest", "root=data", "out=cohort.json"), "ingest", "layout brats2020", proposal, "rules=")
    assert_nothing_but(tmp_path, "data")
    confirmed = ingested("root=data", "accept_labels=true", *QUICK)
    assert confirmed.modalities == ("T1", "T1ce", "T2", "FLAIR")
    assert dict(confirmed.schema.labels)[4] == "enhancing tumour" and len(confirmed.cases) == 6
    assert dict(confirmed.schema.regions)["tumour core"] == (1, 4)
    (tmp_path / "rules.yaml").write_text("labels: {0: background, 1: dead, 4: alive}\n")
    own = ingested("root=data", "rules=rules.yaml", *QUICK, out="own.json")
    assert own.schema.labels == ((0, "background"), (1, "dead"), (4, "alive")) and not own.schema.regions
    assert own.cases == confirmed.cases and snapshot(tmp_path / "data") == before


@pytest.mark.slow
def test_brats_2023_and_2024_must_be_named(stage, ingested, tmp_path):
    names = [f"BraTS-GLI-{person:05d}-{visit}" for person in range(4) for visit in (100, 101)]
    write_brats(tmp_path / "data", names, "-", BRATS_2023)
    done = stage("ingest", "root=data", "out=cohort.json", "accept_labels=true")
    assert_refused(done, "ingest", "layout=brats2023 or layout=brats2024", "4 resection cavity")
    for layout, last in (("brats2023", (3, "enhancing tumour")), ("brats2024", (4, "resection cavity"))):
        done = stage("ingest", "root=data", "out=x.json", f"layout={layout}", *QUICK)
        assert_refused(done, "ingest", f"{last[0]} {last[1]}; confirm")
        manifest = ingested("root=data", f"layout={layout}", "accept_labels=true", *QUICK, out=f"{layout}.json")
        assert manifest.schema.labels[-1] == last
        assert {case.name: case.subject for case in manifest.cases} == {name: name[:-4] for name in names}
        assert len({(case.subject, case.split) for case in manifest.cases}) == 4


@pytest.mark.slow
def test_pairs_from_options_and_from_a_rules_file(stage, ingested, tmp_path):
    data = write_pairs(tmp_path / "data", 7, "scan_{:02d}_t1", label="mask_{}.nii.gz")
    pattern = r"case_pattern=(scan_\d+)"
    manifest = ingested("root=data", *PAIRS, pattern, "name=mine")
    assert manifest.name == "mine" and manifest.modalities == ("image",)
    assert [case.name for case in manifest.cases] == [f"scan_{i:02d}" for i in range(7)]
    assert manifest.cases[0].label == "labels/mask_scan_00_t1.nii.gz"
    assert manifest.schema.names == ("background", "core", "oedema", "air", "rim")
    done = stage("ingest", "root=data", *PAIRS[:2], pattern, "layout=pairs", "out=x.json")
    assert_refused(done, "ingest", "the label values have no names", "never guessed")
    for index in range(7):
        write_volume(data / "images" / f"scan_{index:02d}_t2.nii.gz", faults.scan(index)["t2"], faults.AFFINE)
    rules = {
        "modalities": {"T2": "images/*_t2.nii.gz", "T1": "images/*_t1.nii.gz"},
        "label": "labels/*",
        "case": r"(scan_\d+)",
        "labels": {0: "background", 1: "core", 4: "rim"},
        "regions": {"whole": [1, 4]},
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules, sort_keys=False))
    two = ingested("root=data", "rules=rules.yaml", out="two.json")
    assert two.modalities == ("T2", "T1") and dict(two.schema.regions) == {"whole": (1, 4)}
    assert two.cases[3].images == ("images/scan_03_t2.nii.gz", "images/scan_03_t1.nii.gz")
    (data / "images" / "scan_03_t1.nii.gz").unlink()
    done = stage("ingest", "root=data", "rules=rules.yaml", "out=three.json")
    assert any(
        line.startswith("error: scan_03: ") and "T1 of case scan_03 is missing" in line for line in finding_lines(done)
    )
    assert_refused(done, "ingest", "three.json: not written")


def _voxels(manifest: Manifest) -> dict[str, Mapping[str, np.ndarray]]:
    """Mask of each class by case and class name, to compare labels whose values differ."""
    found = {}
    for case in manifest.cases:
        indices = manifest.schema.to_indices(read_label(manifest.label_path(case)).array, case.name)
        found[case.name] = {n: indices == i for i, n in enumerate(manifest.schema.names) if (indices == i).any()}
    return found


@pytest.mark.slow
def test_nnunet_is_ingested_exported_and_ingested_again(stage, ingested, tmp_path):
    data = tmp_path / "Dataset501_Toy"
    for index in range(8):
        made = faults.scan(index)
        for channel, part in enumerate(("t1", "t2")):
            write_volume(data / "imagesTr" / f"c{index}_{channel:04d}.nii.gz", made[part], faults.AFFINE)
        label = np.where(made["seg"] == 4, 2, made["seg"])
        write_volume(data / "labelsTr" / f"c{index}.nii.gz", label, faults.AFFINE)
    dataset = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "rim": 2},
        "regions_class_order": [1, 2],
        "numTraining": 8,
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(dataset))
    write_csv(tmp_path / "people.csv", ("case", "subject"), *((f"c{i}", f"person{i // 2}") for i in range(8)))
    before = snapshot(data)
    first = ingested(f"root={data}", "subjects=people.csv", "val_fraction=0.25", "test_fraction=0")
    assert dict(first.schema.regions)["whole"] == (1, 2)
    done = stage("export", "manifest=cohort.json", "format=nnunet", "out=out")
    assert done.returncode == 0, done.stderr
    again = ingested("root=out", "splits=out/splits_final.json", out="again.json")
    assert [(c.name, c.subject, c.split) for c in again.cases] == [(c.name, c.subject, c.split) for c in first.cases]
    assert again.modalities == first.modalities and again.schema.regions == first.schema.regions
    one, two = _voxels(first), _voxels(again)
    for name, classes in one.items():
        assert classes.keys() == two[name].keys()
        assert all(np.array_equal(mask, two[name][label]) for label, mask in classes.items())
        images = zip(*[m.image_paths(next(c for c in m.cases if c.name == name)) for m in (first, again)], strict=True)
        assert all(np.array_equal(read_volume(a).array, read_volume(b).array) for a, b in images)
    assert snapshot(data) == before


@pytest.mark.slow
def test_subjects_and_splits_from_files_of_the_user(stage, ingested, tmp_path):
    write_pairs(tmp_path / "data", 8)
    names = [f"case_{i:02d}" for i in range(8)]
    subjects = {name: f"person {i // 2}" for i, name in enumerate(names)}
    write_csv(tmp_path / "people.csv", ("Case", "Subject"), *subjects.items())
    wanted = {name: ("train", "train", "val", "test")[i // 2] for i, name in enumerate(names)}
    write_csv(tmp_path / "splits.csv", ("case", "split"), *wanted.items())
    words = ("root=data", *PAIRS, *QUICK)
    manifest = ingested(*words, "subjects=people.csv", "splits=splits.csv")
    assert splits(manifest) == wanted and {c.name: c.subject for c in manifest.cases} == subjects
    by_person = [(f"person {i}", split) for i, split in enumerate(("val", "train", "train", "train"))]
    write_csv(tmp_path / "persons.csv", ("subject", "split"), *by_person)
    manifest = ingested(*words, "subjects=people.csv", "splits=persons.csv", out="persons.json")
    assert splits(manifest) == {n: "val" if i < 2 else "train" for i, n in enumerate(names)}
    folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:6], "val": names[6:]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    manifest = ingested(*words, "splits=splits_final.json", "splits_fold=1", out="folds.json")
    assert splits(manifest) == {name: "val" if name in names[6:] else "train" for name in names}

    write_csv(tmp_path / "torn.csv", ("case", "split"), *(wanted | {"case_01": "val"}).items())
    done = stage("ingest", *words, "subjects=people.csv", "splits=torn.csv", "out=torn.json")
    (line,) = finding_lines(done)
    assert line.startswith("error: data: ") and "subject person 0 is in two splits" in line
    assert_refused(done, "ingest", "torn.json: not written; correct the 1 error(s)")
    write_csv(tmp_path / "short.csv", ("case", "subject"), *list(subjects.items())[1:])
    done = stage("ingest", *words, "subjects=short.csv", "out=short.json")
    assert_refused(done, "ingest", "short.csv: case case_00 is not in this file")
    assert not (tmp_path / "torn.json").exists() and not (tmp_path / "short.json").exists()


@pytest.mark.slow
def test_folds_are_written_beside_the_manifest(stage, ingested, tmp_path):
    write_pairs(tmp_path / "data", 9)
    (tmp_path / "data" / "labels" / "case_04.nii.gz").unlink()
    words = ("root=data", *PAIRS, *QUICK, "test_fraction=0.2")
    manifest = ingested(*words, "folds=3")
    assert_nothing_but(tmp_path, "data", "cohort.json", "cohort_splits_final.json")
    folds = json.loads((tmp_path / "cohort_splits_final.json").read_text())
    rest = {case.name for case in manifest.cases if case.split != "test" and case.label is not None}
    assert len(folds) == 3 and all(set(fold["train"]) | set(fold["val"]) == rest for fold in folds)
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(rest)
    assert all(not set(fold["train"]) & set(fold["val"]) for fold in folds)
    (tmp_path / "used_splits_final.json").write_text("mine")
    assert_refused(stage("ingest", *words, "folds=3", "out=used.json"), "ingest", "used_splits_final.json")
    assert (tmp_path / "used_splits_final.json").read_text() == "mine" and not (tmp_path / "used.json").exists()
    # An ingest that was killed before it wrote the manifest leaves the same folds.
    (tmp_path / "used_splits_final.json").write_bytes((tmp_path / "cohort_splits_final.json").read_bytes())
    assert ingested(*words, "folds=3", out="used.json").cases == manifest.cases
    for name in ("used.json", "used_splits_final.json"):
        (tmp_path / name).unlink()
    done = stage("ingest", *words, "folds=9", "out=many.json")
    assert_refused(done, "ingest", "many.json: not written")
    assert any("folds=9: only 7 subjects are outside the test split" in line for line in finding_lines(done))
    assert_nothing_but(tmp_path, "data", "cohort.json", "cohort_splits_final.json")
