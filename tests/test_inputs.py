"""Damaged and hostile files give one clear line with their name, and never a hang."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.tables import read_attributes, read_splits, read_subjects
from medaug.comparison.job import Job
from medaug.comparison.jobs import gather
from medaug.comparison.results import COLUMNS as COMPARISON_COLUMNS
from medaug.comparison.scores import COLUMNS as SCORE_COLUMNS
from medaug.csv_files import read_csv, write_csv
from medaug.dicom.privacy import load_private
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.inputs import LARGEST_YAML, opened, read_bytes, read_json, read_yaml
from medaug.layouts.rules import read_rules
from medaug.runs import claim, finished
from medaug.training.callbacks import ValidationCurve
from medaug.training.scoring import _read as read_scores

CASES = (Case("a", ("a.nii.gz",), "a_seg.nii.gz", "p"), Case("b", ("b.nii.gz",), None, "q", "val"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rubbish(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def null_bytes(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def another_kind(path: Path) -> None:
    path.write_text('[[1, "two", null]]\n')


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def unreadable(path: Path) -> None:
    path.chmod(0)


HARMS = (folder, pipe, missing, empty, rubbish, cut, null_bytes, another_kind, loop, unreadable)


def manifest_file(path: Path) -> None:
    Manifest.load(path)


def claimed(path: Path) -> None:
    claim(path.parent, {"trainer": {"max_steps": 3}}, overwrite=True)


def gathered(path: Path) -> None:
    if path.is_file():  # with the digest of the damaged content, so that the damage itself must be noticed
        path.with_suffix(".sha256").write_text(f"{file_sha256(path)}  {path.name}\n")
    jobs = [Job("real", 0)]
    scores = gather(jobs, ["core"], path.parents[3])
    for metric in ("dice", "hd95"):
        scores.table(jobs, ["a"], "core", metric)


def pairs(path: Path) -> None:
    provenance.read(path, provenance.PREDICTION)


RULES = 'modalities:\n  T1: "*.nii.gz"\nlabels: {0: background, 1: tumour}\n'
CURVE = "step,loss\n10,0.5\n20,0.25\n"
PRIVATE = {"format": 1, "salt": "0" * 64, "subjects": {"S1": "x"}, "cases": {}, "problems": []}
RECORD = {"index": 0, "attempt": 0, "name": "a", "subjects": ["p"], "checkpoint": "0", "files": {}, "scores": []}
SCORES = ",".join(SCORE_COLUMNS) + "\nreal,0,a,core,dice,0.5\nreal,0,a,core,hd95,2.5\n"
SAMPLES = "step,score,near_copies,near_copies_p\n10,0.5,0,1\n"

# Name: valid content, and its reader. `missing` is left out for files that may be absent.
FILES: dict[str, tuple[str, Callable[[Path], object], bool]] = {
    "manifest.json": (
        json.dumps(
            {
                "modality": {"0": "T1"},
                "labels": {"0": "background", "1": "core"},
                "training": [{"image": "a.nii.gz", "label": "b.nii.gz", "name": "a"}],
            }
        ),
        manifest_file,
        False,
    ),
    "subjects.csv": ("case,subject\na,p\nb,q\n", lambda path: read_subjects(path, CASES), False),
    "attributes.csv": ("case,site\na,x\nb,y\n", lambda path: read_attributes(path, CASES), False),
    "splits.csv": ("case,split\na,train\nb,val\n", lambda path: read_splits(path, CASES), False),
    "splits_final.json": ('[{"train": ["a"], "val": ["b"]}]', lambda path: read_splits(path, CASES), False),
    "rules.yaml": (RULES, read_rules, False),
    "config.yaml": ("trainer: {max_steps: 3}\n", claimed, True),
    "finished.json": ('{"validation_loss": 0.5}', lambda path: finished(path.parent), True),
    "private.json": (json.dumps(PRIVATE), load_private, True),
    "provenance.jsonl": (json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"index": 1}) + "\n", pairs, True),
    "jobs/real/seed_0/scores.csv": (SCORES, gathered, False),
    "scores.csv": (SAMPLES, read_scores, True),
    "validation.csv": (CURVE, lambda path: ValidationCurve(path, 10).loss(), True),
}
# Files that are valid when cut: an empty table, or lines that a killed process left.
WHOLE = {
    ("provenance.jsonl", "empty"),
    ("provenance.jsonl", "cut"),
    ("provenance.jsonl", "null_bytes"),
    ("validation.csv", "cut"),
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_in_one_line_and_not_changed(tmp_path, name, harm):
    content, read, optional = FILES[name]
    path = tmp_path / "cohort" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    read(path)
    if (harm is missing and optional) or (name, harm.__name__) in WHOLE:
        pytest.skip("that is no damage there")
    if harm is unreadable and os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.write_text(content)
    harm(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError) as error:
        read(path)
    line = str(error.value)
    assert path.name in line
    assert "\n" not in line and "; " in line and len(line) < 600 + len(str(path)), line
    assert (path.read_bytes() if path.is_file() else None) == before


RECORDS = {
    "an index of another type": {"index": "0"},
    "an index that is true": {"index": True},
    "an index that is infinite": {"index": float("inf")},
    "no name": {"name": None},
    "subjects that are numbers": {"subjects": [1]},
    "files in a list": {"files": ["a"]},
    "scores that are a text": {"scores": "high"},
}


@pytest.mark.parametrize("fault", RECORDS)
def test_a_malformed_record_is_reported_with_its_line(tmp_path, fault):
    path = tmp_path / "provenance.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"index": 1} | RECORDS[fault]) + "\n")
    with pytest.raises(UserError, match="provenance.jsonl: line 2 is not a provenance record"):
        provenance.read(path, provenance.PREDICTION)


@pytest.mark.parametrize("key", provenance.PAIR)
def test_an_incomplete_pair_is_reported_with_its_line(tmp_path, key):
    kinds = {"index": 0, "attempt": 0, "seed": 0, "subjects": [], "images": []}
    record = {name: kinds.get(name, "text") for name in provenance.PAIR}
    path = tmp_path / "provenance.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert provenance.read(path, provenance.PAIR) == {(0, 0): record}
    path.write_text(json.dumps({name: value for name, value in record.items() if name != key}) + "\n")
    with pytest.raises(UserError, match=f"line 1 is not a provenance record .*{key}"):
        provenance.read(path, provenance.PAIR)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "provenance.jsonl"
    path.write_text("[" * (3 << 20))
    with pytest.raises(UserError, match="line 1 is not a provenance record"):
        provenance.read(path)


def test_aliases_that_multiply_a_yaml_file_are_refused(tmp_path):
    path = tmp_path / "rules.yaml"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    path.write_text(bomb)
    with pytest.raises(UserError, match="its aliases repeat too much"):
        read_yaml(path)
    path.write_text("a: &a [1, *a]\n")
    with pytest.raises(UserError, match="its aliases repeat too much"):
        read_yaml(path)
    path.write_text("labels: &l {0: background}\nremap: *l\n")
    assert read_yaml(path) == {"labels": {0: "background"}, "remap": {0: "background"}}


@pytest.mark.parametrize(
    "value", ["!!timestamp x", "!!int ''", "!!float x", "!!bool x", "!!binary x", "!!set x", "!!omap x", "2020-13-45"]
)
def test_a_wrong_yaml_tag_is_refused(tmp_path, value):
    path = tmp_path / "rules.yaml"
    path.write_text(f"labels: {value}\n")
    with pytest.raises(UserError, match=r"rules\.yaml: not YAML \("):
        read_yaml(path)


def test_files_above_the_size_limit_are_not_read(tmp_path):
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(LARGEST_YAML + 1)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_yaml(path)
    with path.open("wb") as file:
        file.truncate(3 << 40)  # a sparse file
    with pytest.raises(UserError, match="larger than 64 MiB"):
        read_json(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a/b/c", "\udcff"])
def test_names_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(UserError), opened(tmp_path / name):
        pass
    with pytest.raises(UserError):
        read_bytes("/dev/zero")


CELLS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\n=1",
    "'=1",
    "''@x",
    "'quoted'",
    "plain",
    "",
    "a,b",
]
NUMBERS = ["-0.004", "+1", "-1e-05", "0.5", "-inf"]


def test_a_table_holds_no_formula_and_reads_back_as_it_was(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ("case", "=value"), [(cell, -0.5) for cell in CELLS] + [(cell, 1) for cell in NUMBERS])
    with path.open(newline="") as file:
        raw = list(csv.reader(file))
    for row in raw:
        for cell in row:
            assert not cell.startswith(("=", "@", "\t", "\n")) and (cell[:1] not in "+-" or not cell or float(cell) < 2)
    assert [row["case"] for row in read_csv(path, ("case", "=value"), "")] == CELLS + NUMBERS
    assert {row["=value"] for row in read_csv(path, ("case",), "")} == {"-0.5", "1"}


def test_comparison_columns_are_safe_as_they_are(tmp_path):
    write_csv(tmp_path / "a.csv", COMPARISON_COLUMNS, [])
    assert (tmp_path / "a.csv").read_text() == ",".join(COMPARISON_COLUMNS) + "\n"
