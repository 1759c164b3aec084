"""Cohorts as BIDS derivatives, checked by the BIDS validator and read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import oblique

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.exporting.bids import write_bids
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume
from medaug.layouts import read_cohort, read_layout
from medaug.layouts.rules import read_rules
from medaug.marking.verification import verify

SHAPE = (5, 4, 3)
SCHEMA = LabelSchema(((0, "background"), (2, "core")), ignore=9)
NAMES = ("T1", "T1ce", "FLAIR")
RECORD = {"index": 0, "attempt": 0, "host": "h", "host_subject": "one", "checkpoint": "0" * 64}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    root, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for name in NAMES:
        write_volume(root / f"{name}.nii.gz", rng.normal(size=SHAPE).astype(np.float32), oblique())
    write_volume(root / "seg.nii.gz", rng.choice([0, 2, 9], SHAPE).astype(np.uint8), oblique())
    files = tuple(f"{name}.nii.gz" for name in NAMES)
    cases = [Case(f"a_{i}", files, "seg.nii.gz", s, t) for i, (s, t) in enumerate((("one", "train"), ("two", "val")))]
    return Manifest("toy", "made-up", NAMES, SCHEMA, tuple(cases), str(root))


@pytest.fixture(scope="module")
def out(manifest, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bids") / "out"
    write_bids(Export(manifest, out, {"a_0": RECORD}))
    return out


@pytest.mark.slow
def test_the_bids_validator_finds_no_error(out, tool):
    """Version 3 of the validator, whose schema knows derivatives; it needs no network."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = shutil.which("bids-validator-deno", path=places) or tool("bids-validator-deno")
    done = subprocess.run([command, str(out), "--json"], capture_output=True, text=True, timeout=120)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == [] and done.returncode == 0
    assert {issue["code"] for issue in issues} <= {
        "README_FILE_SMALL",
        "TOO_FEW_AUTHORS",
        "SIDECAR_KEY_RECOMMENDED",
        "JSON_KEY_RECOMMENDED",
    }


def test_the_manifest_and_the_rules_give_the_same_cohort_again(manifest, out):
    back = read_cohort(out / "manifest.json")
    assert (back.modalities, back.schema, back.name) == (NAMES, SCHEMA, "toy")
    assert [(c.name, c.subject, c.split) for c in back.cases] == [("a_0", "one", "train"), ("a_1", "two", "val")]
    ruled = read_layout(out, rules=read_rules(out / "rules.yaml")).valid_manifest()
    assert (ruled.modalities, ruled.schema) == (NAMES, SCHEMA)
    assert [case.images for case in ruled.cases] == [case.images for case in back.cases]
    for case, original in zip(back.cases, manifest.cases, strict=True):
        for ours, path in zip(back.files(case), manifest.files(original), strict=True):
            np.testing.assert_array_equal(nib.load(ours).get_fdata(), nib.load(path).get_fdata())
            np.testing.assert_array_equal(nib.load(ours).affine, nib.load(path).affine)


def test_tables_name_the_label_values_and_the_cases(out):
    assert (out / "dseg.tsv").read_text() == "index\tname\n0\tbackground\n2\tcore\n9\tignored\n"
    lines = [line.split("\t") for line in (out / "participants.tsv").read_text().splitlines()]
    assert lines[0] == ["participant_id", "case", "source_subject", "split", "synthetic"]
    assert lines[1:] == [["sub-a0", "a_0", "one", "train", "true"], ["sub-a1", "a_1", "two", "val", "false"]]
    made_by = json.loads((out / "dataset_description.json").read_text())["GeneratedBy"]
    assert made_by[0]["Name"] == "medaug" and made_by[0]["Version"]
    assert sorted(path.name for path in (out / "sub-a0/anat").glob("*.nii.gz")) == [
        f"sub-a0_{end}.nii.gz" for end in ("FLAIR", "acq-native_T1w", "ce-gadolinium_T1w", "dseg")
    ]


def test_synthetic_files_are_marked_and_the_others_are_not(out):
    found = {(one.path.name[:6], one.origin, one.state) for one in verify(out)}
    assert found == {("sub-a0", "synthetic", "unchanged"), ("sub-a1", "not marked", "unknown")}
    assert json.loads((out / "sub-a1/anat/sub-a1_FLAIR.json").read_text()) == {"SkullStripped": False}


def test_names_of_participants_stay_apart(manifest, tmp_path):
    cases = tuple(replace(case, name=name) for case, name in zip(manifest.cases, ("a_1", "A1"), strict=True))
    write_bids(Export(replace(manifest, cases=cases), tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").glob("sub-*")) == ["sub-00001", "sub-00002"]


@pytest.mark.parametrize(
    ("modalities", "suffixes", "reason"),
    [
        (("CT", "T1", "T2"), (), r"modality CT: medaug does not know .*; give one, as in suffixes=\[CT:T1w\]"),
        (("T1", "T1w", "T2"), (), r"two modalities would be called T1w; distinguish them with suffixes="),
        (("T1", "T2", "PD"), ("T3:T1w",), "suffixes: T3:T1w: expected MODALITY:SUFFIX, where"),
        (("T1", "T2", "PD"), ("T1",), "suffixes: T1: expected MODALITY:SUFFIX"),
    ],
)
def test_what_bids_cannot_name_gives_one_line(manifest, tmp_path, modalities, suffixes, reason):
    with pytest.raises(UserError, match=reason) as error:
        write_bids(Export(replace(manifest, modalities=modalities), tmp_path / "out", suffixes=suffixes))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_modality_takes_the_suffix_that_is_given(manifest, tmp_path):
    named = replace(manifest, modalities=("MRI", "T1ce", "FLAIR"))
    write_bids(Export(named, tmp_path / "out", suffixes=("MRI:T2w",), skull_stripped=True))
    assert json.loads((tmp_path / "out/sub-a0/anat/sub-a0_T2w.json").read_text()) == {"SkullStripped": True}
