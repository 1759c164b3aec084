"""Rules files, and what the command line adds to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medaug.cohort import LabelSchema
from medaug.errors import UserError
from medaug.layouts.rules import NO_RULES, Rules, read_rules, with_pairs


def _file(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def test_a_whole_rules_file(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        r"""
modalities:
  T1: "images/*_t1.nii.gz"
  FLAIR: "images/*_flair.nii.gz"
label: "labels/*.nii.gz"
case: "(case_\\d+)"
structures: {tumour: "gtv|tumou?r"}
labels: {0: background, 1: necrosis, 3: enhancing}
regions: {whole tumour: [1, 3]}
ignore: 255
remap: {4: 3}
""",
    )
    rules = read_rules(path)
    assert list(rules.modalities.items()) == [("T1", "images/*_t1.nii.gz"), ("FLAIR", "images/*_flair.nii.gz")]
    assert (rules.label, rules.case, rules.source) == ("labels/*.nii.gz", r"(case_\d+)", str(path))
    assert rules.structures == {"tumour": "gtv|tumou?r"}
    schema = LabelSchema.from_mapping(rules.schema, rules.source)
    assert schema == LabelSchema(
        ((0, "background"), (1, "necrosis"), (3, "enhancing")), (("whole tumour", (1, 3)),), 255, ((4, 3),)
    )


def test_modalities_by_tag(tmp_path: Path) -> None:
    rules = read_rules(_file(tmp_path, "modalities: {T1: {SeriesDescription: '(?i)t1', Modality: MR}}"))
    assert rules == Rules({"T1": {"SeriesDescription": "(?i)t1", "Modality": "MR"}}, source=rules.source)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("modality: {T1: a}", "modality is not a key of a rules file; did you mean modalities"),
        ("zzz: 1", "the keys are modalities, label, case"),
        ("- a", "not a mapping"),
        ("", "not a mapping"),
        ("label: *.nii.gz", "not YAML .*put globs in quotation marks"),
        ("labels: {0: background, 1: a, 1: b}", "key 1 occurs twice"),
        ("label: 3", "label is not a text"),
        ("modalities: [a]", "modalities is not a mapping from names to texts"),
        ("modalities: {T1: ''}", "modalities is not a mapping"),
        ("modalities: {T1: {EchoTime: 5}}", "modalities is not a mapping"),
        ("modalities: {T1: 'a*', T2: {EchoTime: '5'}}", "named partly by globs, partly by DICOM tags"),
        ("case: '('", r"case: \( is not a regular expression"),
        ("case: 'a+'", r"case: a\+ has no group"),
        ("structures: {a: '['}", r"structures, a: \[ is not a regular expression"),
        ("structures: {a: {b: c}}", "structures is not a mapping from names to texts"),
        ("modalities: {T1: {EchoTime: '*'}}", r"modalities, T1, EchoTime: \* is not a regular expression"),
        ("[" * 1500, "not YAML"),
    ],
)
def test_bad_rules_files_are_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(UserError, match=reason) as error:
        read_rules(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(UserError, match="no such file|cannot be read|not UTF-8"):
            read_rules(path)


def test_options_add_to_the_rules_file() -> None:
    assert with_pairs(NO_RULES) is NO_RULES
    rules = with_pairs(NO_RULES, "i/*", "l/*", "(.)", ["background", "a"])
    assert rules == Rules(
        {"image": "i/*"}, "l/*", "(.)", schema={"labels": {"0": "background", "1": "a"}}, source="command line"
    )
    file = Rules({"T1": "a*"}, schema={"labels": {"0": "background"}}, source="rules.yaml")
    assert with_pairs(file, labels="l/*") == Rules({"T1": "a*"}, "l/*", schema=file.schema, source="rules.yaml")
    for key, changes in (("images", {"images": "i/*"}), ("classes", {"classes": ["background"]})):
        with pytest.raises(UserError, match=f"{key}: rules.yaml has .*; remove one"):
            with_pairs(file, **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="case_pattern=a has no group"):
        with_pairs(NO_RULES, case_pattern="a")
