"""Subjects, splits and attributes from files of the user."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medaug.cohort import Case
from medaug.cohort.folds import hold_out_fold, splits_final
from medaug.cohort.tables import read_attributes, read_splits, read_subjects
from medaug.errors import UserError

CASES = [Case(name, (f"{name}.nii",), "l", name[0]) for name in ("a1", "a2", "b1", "c1")]


def _write(folder: Path, content: object, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "case,subject\na1,x\na2,x\nb1,y\nc1,z\n",
        "\ufeffsubject;age;Case\nz;3;c1\n y ;;b1\n\nx;4;a2\nx;4;a1\n",
        'case,subject\n"a1","x"\r\n"a2","x"\r\n"b1",y\r\nc1,z',
    ],
)
def test_subjects(tmp_path: Path, text: str) -> None:
    assert [c.subject for c in read_subjects(_write(tmp_path, text), CASES)] == ["x", "x", "y", "z"]


@pytest.mark.parametrize("key", ["case", "subject"])
def test_splits_of_a_csv_file(tmp_path: Path, key: str) -> None:
    rows = {"case": "a1,train\na2,train\nb1,val\nc1,test", "subject": "a,train\nb,val\nc,test"}
    result = read_splits(_write(tmp_path, f"{key},split\n{rows[key]}\n"), CASES)
    assert [(c.name, c.split) for c in result] == [("a1", "train"), ("a2", "train"), ("b1", "val"), ("c1", "test")]


def test_splits_of_nnunet_round_trip(tmp_path: Path) -> None:
    cases = [Case(f"case{n}", ("i",), "l", f"subject{n // 2}") for n in range(20)]
    path = _write(tmp_path, splits_final(cases, 5, 3), "splits_final.json")
    for fold in range(5):
        assert read_splits(path, cases, fold) == hold_out_fold(cases, 5, fold, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,subject\na1,x\n", r"case a2 \(and 2 more\) is not in this file; add it"),
        ("case,subject\na1,x\na2,x\nb1,y\nc1,z\nd1,z\n", "case d1 is not in the cohort"),
        ("case,subject\na1,x\na1,y\n", "case a1 has two entries for subject"),
        ("case,subject\na1\n", "line 2 lacks case or subject"),
        ("case,subject\na1,\n", "line 2 lacks case or subject"),
        ("name,subject\na1,x\n", "needs the columns case and subject; name them in the first line"),
        ("", "needs the columns"),
        ('case,subject\n"a1,x\n', "not a CSV file"),
    ],
)
def test_bad_tables_of_subjects_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserError, match=reason) as error:
        read_subjects(path, CASES)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "case,site,grade,age,note\na1,A,2,7.5,1_1\na2,A,2,7.5,1_1\nb1,B 1,3.0e0,,\nc1,,,-1,007\n",
        "subject,split,site,grade,age,note\na,train,A,2,7.5,1_1\nb,val,B 1,3,,\nc,test,,,-1,007",
        "\ufeffsite;Case;grade;age;note;subject\nA;a1;2;7,5;1_1;x\n A;a2;2;7,50;1_1;x\n\nB 1;b1;+3,;;;y\n;c1;;-1;007;z",
    ],
)
def test_attributes(tmp_path: Path, text: str) -> None:
    cases = [*CASES[:3], replace(CASES[3], attributes={"site": "Z", "contrast": "no"})]
    result = read_attributes(_write(tmp_path, text), cases)
    of_a = {"site": "A", "grade": 2.0, "age": 7.5, "note": "1_1"}
    expected = [of_a, of_a, {"site": "B 1", "grade": 3.0}, {"site": "Z", "contrast": "no", "age": -1.0, "note": "007"}]
    assert [case.attributes for case in result] == expected
    assert [replace(case, attributes={}) for case in result] == CASES
    assert all(isinstance(case.attributes.get("grade", 0.0), float) for case in result)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,site\na1,A\n", r"case a2 \(and 2 more\) is not in this file; add it"),
        ("subject,site\na,A\nb,A\nc,A\nd,A\n", "subject d is not in the cohort"),
        ("case,site\na1,A\na1,B\n", "case a1 has two entries"),
        ("case,age\na1,7,5\n", "line 2 has 3 cells for 2 columns; put texts with commas in quotes"),
        ("case,age,site\na1,7\n", "line 2 has 2 cells for 3 columns"),
        ("case,site\n,A\n", "line 2 lacks case; fill it in"),
        ("name,site\na1,A\n", "needs a column case or subject"),
        ("case,subject\na1,A\n", "needs a column case or subject, and one per attribute"),
        ("", "needs a column case or subject"),
        ("case,,site\na1,,A\n", "two columns have the same name, or one has none"),
        ("case,site,Site\na1,A,B\n", "two columns have the same name"),
        ("subject,age\na,1\nb,NaN\nc,2\n", "age of subject b is NaN; leave the cell empty"),
        ("subject,spacing\na,1\nb,1\nc,1\n", "case a1 has an attribute spacing, which is reserved"),
        ('case,site\n"a1,A\n', "not a CSV file"),
    ],
)
def test_bad_tables_of_attributes_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserError, match=reason) as error:
        read_attributes(path, CASES)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value) and "; " in str(error.value)


FOLD = {"train": ["a1", "a2"], "val": ["b1", "c1"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([FOLD], r"there are folds 0 to 0, not 1"),
        ([FOLD, FOLD | {"val": ["b1"]}], "case c1 is not in this file"),
        ([FOLD, FOLD | {"val": ["b1", "c1", "d1"]}], "case d1 is not in the cohort"),
        ([FOLD, {"train": ["a1", "b1"], "val": ["a2", "c1"]}], "subject a is in two splits, a1 in train and a2 in val"),
        ([FOLD, FOLD | {"train": ["a1", "a2", "b1"]}], "case b1 is in train and in val of fold 1"),
        ([FOLD, {"train": []}], "fold 1 has no list val"),
        ([FOLD, 3], "fold 1 has no list train"),
        ([], "not a list of folds"),
        ({}, "not a list of folds"),
        ("[", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
    ],
)
def test_bad_splits_final_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = _write(tmp_path, content, "splits_final.json")
    with pytest.raises(UserError, match=reason) as error:
        read_splits(path, CASES, 1)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,split\na1,train\na2,test\nb1,val\nc1,val", "subject a is in two splits, a1 in train and a2 in test"),
        ("subject,split\na,training\nb,val\nc,val", "subject a has split training; write train, val, test"),
        ("subject,split\na,train\nb,val", "subject c is not in this file"),
        ("patient,split\na,train", "needs the columns case or subject and split"),
    ],
)
def test_bad_tables_of_splits_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_splits(_write(tmp_path, text), CASES)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"case,split\n\xff")
    for name in ("absent.csv", "bytes.csv", "."):
        with pytest.raises(UserError, match="no such file|cannot be read|not UTF-8"):
            read_splits(tmp_path / name, CASES)
