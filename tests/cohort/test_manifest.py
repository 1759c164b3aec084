"""Manifest: round trips, validation, and how MONAI reads the file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medaug.cohort import Case, LabelSchema, Manifest
from medaug.cohort.splits import subject_of
from medaug.errors import UserError

SCHEMA = LabelSchema(((0, "background"), (1, "tumour")))
COMMITTED = Path(__file__).parents[2] / "data_manifests" / "hippocampus.json"


def _manifest(root: Path, **changes: Any) -> Manifest:
    cases = (
        Case("a", ("imagesTr/a_t1.nii.gz", "imagesTr/a_t2.nii.gz"), "labelsTr/a.nii.gz", "p1", "train"),
        Case("b", ("imagesTr/b.nii.gz",), None, "p2", "val"),  # one 4-D file, unlabelled
        Case("c", ("imagesTr/c_t1.nii.gz", "imagesTr/c_t2.nii.gz"), "labelsTr/c.nii.gz", "p3", "test"),
    )
    return replace(Manifest("brain", "made up", ("T1", "T2"), SCHEMA, cases, str(root)), **changes)


def test_round_trip_and_moved_folder(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "here", phantom=True, licence="CC0 1.0")
    manifest.save(tmp_path / "here" / "manifest.json")
    assert Manifest.load(tmp_path / "here" / "manifest.json") == manifest
    os.rename(tmp_path / "here", tmp_path / "there")
    assert Manifest.load(tmp_path / "there" / "manifest.json").root == str(tmp_path / "there")


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {}
    for name, root in (("inside", tmp_path / "m" / "data"), ("outside", tmp_path / "data")):
        path = tmp_path / "m" / f"{name}.json"
        _manifest(root).save(path)
        stored[name] = json.loads(path.read_text())["root"]
        assert Manifest.load(path).root == str(root)
        assert Manifest.load(path, root=tmp_path).root == str(tmp_path)
    assert stored == {"inside": "data", "outside": str(tmp_path / "data")}
    monkeypatch.chdir(tmp_path)
    assert Manifest.load("m/inside.json", root="elsewhere").root == str(tmp_path / "elsewhere")
    loaded = Manifest.load("m/inside.json")
    assert loaded.image_paths(loaded.cases[1]) == [tmp_path / "m/data/imagesTr/b.nii.gz"]
    assert loaded.label_path(loaded.cases[0]) == tmp_path / "m/data/labelsTr/a.nii.gz"
    assert loaded.label_path(loaded.cases[1]) is None


def test_splits_and_subjects(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    assert [case.name for case in manifest.split("test")] == ["c"]
    assert manifest.subjects("train") == {"p1"}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10)
numbers = st.dictionaries(st.sampled_from(["grade", "age"]), st.floats(allow_nan=False, allow_infinity=False))


@given(names=st.lists(texts, unique=True, min_size=1, max_size=5), data=st.data())
def test_json_keeps_every_text(names: list[str], data: st.DataObject) -> None:
    cases = tuple(
        Case(
            name,
            (f"images/{index}.nii.gz",),
            None,
            f"{name}{index}",
            data.draw(st.sampled_from(["train", "val"])),
            data.draw(st.dictionaries(st.sampled_from(["site", "Größe"]), texts)) | data.draw(numbers),
        )
        for index, name in enumerate(names)
    )
    manifest = Manifest("x", "", ("MR",), SCHEMA, cases, "/data")
    if len({case.subject for case in cases}) == len(cases):
        back = json.loads(json.dumps(manifest.to_mapping(), ensure_ascii=False))
        assert Manifest.from_mapping(back, "/data", "x.json") == manifest


def test_the_whole_schema_is_stored_and_monai_still_reads_the_file(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    schema = LabelSchema(
        ((0, "background"), (1, "core"), (3, "rim")), regions=(("whole", (1, 3)),), ignore=255, remap=((4, 3),)
    )
    cases = (Case("a", ("a.nii.gz",), "a_seg.nii.gz", "p"), Case("b", ("b.nii.gz",), "b_seg.nii.gz", "q", "val"))
    manifest = Manifest("x", "", ("MR",), schema, cases, str(tmp_path))
    manifest.save(tmp_path / "x.json")
    assert Manifest.load(tmp_path / "x.json") == manifest
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["labels"] == {"0": "background", "1": "core", "3": "rim"}
    assert (content["regions"], content["ignore"], content["remap"]) == ({"whole": [1, 3]}, 255, {"4": 3})
    listed = load_decathlon_datalist(str(tmp_path / "x.json"), True, "training", str(tmp_path))
    assert [item["label"] for item in listed] == [str(tmp_path / "a_seg.nii.gz"), str(tmp_path / "b_seg.nii.gz")]


def test_a_plain_msd_file_is_a_manifest(tmp_path: Path) -> None:
    content = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [{"image": "./imagesTr/liver_0.nii.gz", "label": "./labelsTr/liver_0.nii.gz"}],
        "test": ["./imagesTs/liver_1.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert Manifest.load(tmp_path / "dataset.json").cases == (
        Case("liver_0", ("imagesTr/liver_0.nii.gz",), "labelsTr/liver_0.nii.gz", "liver_0", "train"),
    )


def _entry(**changes: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "image": ["a1.nii", "a2.nii"],
        "label": "l.nii",
        "subject": "p",
        "split": "train",
    } | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training": []}, "the manifest is empty"),
        ({"training": None}, "the manifest is empty"),
        ({"training": [_entry(), _entry()]}, "case a occurs 2 times"),
        ({"training": [_entry(), _entry(name="b", split="test")]}, "subject p is in several splits (test, train)"),
        ({"training": [_entry(split="validation")]}, 'split "validation"'),
        ({"training": [_entry(image=["a", "b", "c"])]}, "3 images for 2 modalities"),
        ({"training": [_entry(image=[])]}, "case a has no image"),
        ({"training": [_entry(subject=7)]}, "subject 7"),
        ({"training": [_entry(name="")]}, "name ''"),
        ({"training": ["a.nii"]}, "each case is an object"),
        ({"training": [_entry(label="/etc/passwd")]}, "not a path below root"),
        ({"training": [_entry(label="../l.nii")]}, "not a path below root"),
        ({"training": [_entry(attributes=["A"])]}, "case a: attributes are ['A']"),
        ({"training": [_entry(attributes={"site": ""})]}, "case a: attribute site is ''"),
        ({"training": [_entry(attributes={"site": True})]}, "attribute site is True; write a text or a number"),
        ({"training": [_entry(attributes={"age": float("nan")})]}, "attribute age is nan"),
        ({"training": [_entry(attributes={"age": 10**400})]}, "attribute age is 1000"),
        ({"training": [_entry(attributes={"": 1})]}, "an attribute has no name"),
        ({"training": [_entry(attributes={"spacing": 1})]}, "attribute spacing, which is reserved"),
        (
            {"training": [_entry(attributes={"x": 1}), _entry(name="b", attributes={"x": "1"})]},
            "attribute x is 1.0 in case a and '1' in b",
        ),
        ({"labels": {"1": "tumour"}}, "labels lack the background"),
        ({"labels": None}, "labels is not a mapping"),
        ({"modality": {"1": "T1"}}, "modality must number"),
        ({"modality": {}}, "modality must number"),
        ({"root": 5}, "root is not a text"),
    ],
)
def test_bad_content_gets_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    content = {
        "name": "x",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "tumour"},
        "training": [_entry()],
    }
    path = tmp_path / "cohort.json"
    path.write_text(json.dumps(content | changes))
    with pytest.raises(UserError) as error:
        Manifest.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "; " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a JSON file"),
        ('{"training": [', "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "not a JSON object"),
        ('{"labels": {"0": "background", "1": "a", "1": "b"}}', 'key "1" occurs twice'),
        ("\udcff", "not UTF-8 text"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "cohort.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=reason):
        Manifest.load(path)
    with pytest.raises(UserError, match="no such file"):
        Manifest.load(tmp_path / "absent.json")
    with pytest.raises(UserError, match="cannot be read"):
        Manifest.load(tmp_path)


def test_an_invalid_manifest_is_not_written(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    crossing = replace(manifest, cases=(*manifest.cases, replace(manifest.cases[0], name="d", split="test")))
    with pytest.raises(UserError, match="subject p1"):
        crossing.save(tmp_path / "m.json")
    assert list(tmp_path.iterdir()) == []


def test_unknown_attributes_are_absent(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    (tmp_path / "A").touch()  # MONAI replaces a text that is the name of a file, but not inside a mapping
    manifest = _manifest(tmp_path)
    expected = [{"site": "A", "grade": 2.0}, {}, {"grade": -0.5}]
    cases = tuple(replace(case, attributes=known) for case, known in zip(manifest.cases, expected, strict=True))
    replace(manifest, cases=cases).save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json") == replace(manifest, cases=cases) != manifest
    items = load_decathlon_datalist(str(tmp_path / "m.json"), True, "training", base_dir=str(tmp_path))
    assert [item.get("attributes", {}) for item in items] == expected
    content = json.loads((tmp_path / "m.json").read_text())
    content["training"][0]["attributes"] = {"site": None, "grade": 2}
    content["training"][2]["attributes"] = None
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert [case.attributes for case in Manifest.load(tmp_path / "m.json").cases] == [{"grade": 2.0}, {}, {}]


def test_monai_reads_it(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    _manifest(tmp_path).save(tmp_path / "m.json")
    items = load_decathlon_datalist(str(tmp_path / "m.json"), True, "training", base_dir=str(tmp_path))
    assert items == [
        {
            "name": "a",
            "image": [str(tmp_path / "imagesTr/a_t1.nii.gz"), str(tmp_path / "imagesTr/a_t2.nii.gz")],
            "label": str(tmp_path / "labelsTr/a.nii.gz"),
            "subject": "p1",
            "split": "train",
        },
        {"name": "b", "image": str(tmp_path / "imagesTr/b.nii.gz"), "subject": "p2", "split": "val"},
        {
            "name": "c",
            "image": [str(tmp_path / "imagesTr/c_t1.nii.gz"), str(tmp_path / "imagesTr/c_t2.nii.gz")],
            "label": str(tmp_path / "labelsTr/c.nii.gz"),
            "subject": "p3",
            "split": "test",
        },
    ]


def test_committed_hippocampus_manifest() -> None:
    manifest = Manifest.load(COMMITTED)
    assert len(manifest.cases) == 199
    assert {s: len(manifest.subjects(s)) for s in ("train", "val", "test")} == {
        "train": 92,
        "val": 13,
        "test": 26,
    }
    people: dict[int, set[str]] = {}  # the two sides of a person by arithmetic, without medaug's pattern
    for case in manifest.cases:
        people.setdefault((int(case.name[-3:]) + 1) // 2, set()).add(case.split)
        assert case.subject == subject_of(case.name, r"hippocampus_(\d+)", 2)
    assert len(people) == 131
    assert all(len(splits) == 1 for splits in people.values())


def test_committed_hippocampus_manifest_on_the_real_files(medaug_data: Path) -> None:
    manifest = Manifest.load(COMMITTED, root=Path(medaug_data) / "Task04_Hippocampus")
    listed = {path for case in manifest.cases for path in (*manifest.image_paths(case), manifest.label_path(case))}
    on_disk = set(Path(manifest.root).glob("*/*.nii.gz"))
    assert listed == on_disk
