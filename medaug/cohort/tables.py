"""Subjects, splits and attributes from the user's own files: CSV, or nnU-Net's splits_final.json."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from medaug.cohort.manifest import SPLITS, Case, attribute_problems
from medaug.errors import UserError
from medaug.inputs import read_json_value, read_text

_NUMBER = re.compile(r"[+-]?(\d{1,18}\.?\d*|\.\d+)(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)


def read_subjects(path: Path, cases: Iterable[Case]) -> tuple[Case, ...]:
    """Set the subjects of cases from a CSV file with the columns case and subject.

    Returns:
        The cases in the order given.

    Raises:
        UserError: the file is unreadable, a case is missing or has two subjects, or an entry is not in the cohort.
    """
    cases = tuple(cases)
    _, subjects = _read_columns(path, "subject", "case")
    _match(path, "case", subjects, [case.name for case in cases])
    return tuple(replace(case, subject=subjects[case.name]) for case in cases)


def read_splits(path: Path, cases: Iterable[Case], fold: int = 0) -> tuple[Case, ...]:
    """Set the splits of cases from a file.

    Args:
        path: nnU-Net's splits_final.json (a list of {"train": [...], "val": [...]} with case names; it has no test
            split), or a CSV file with the columns case (or subject) and split (train, val or test).
        cases: the cases of the cohort, with their subjects.
        fold: which entry of splits_final.json to use.

    Returns:
        The cases in the order given.

    Raises:
        UserError: the file is unreadable, a case is in no split or in two, an entry is not in the cohort, or the cases
            of a subject are in different splits.
    """
    cases = tuple(cases)
    if path.suffix == ".json":
        key, split = "case", _read_fold(path, fold)
    else:
        key, split = _read_columns(path, "split", "case", "subject")
        for name, value in split.items():
            if value not in SPLITS:
                raise UserError(f"{key} {name} has split {value}", f"write {', '.join(SPLITS)}", path=path)
    names = [case.name if key == "case" else case.subject for case in cases]
    _match(path, key, split, names)
    first: dict[str, Case] = {}
    result = tuple(replace(case, split=split[name]) for case, name in zip(cases, names, strict=True))
    for case in result:
        other = first.setdefault(case.subject, case)
        if other.split != case.split:
            raise UserError(
                f"subject {case.subject} is in two splits, {other.name} in {other.split} and {case.name} in"
                f" {case.split}",
                "put all cases of a person in one split",
                path=path,
            )
    return result


def read_attributes(path: Path, cases: Iterable[Case]) -> tuple[Case, ...]:
    """Add attributes from a CSV file: a column case or subject, and one column per attribute.

    A column whose entries are all numbers becomes numbers (with a decimal comma if columns are separated by
    semicolons); any other column becomes texts. An empty cell means unknown. The columns case, subject and split are
    not attributes, so one table can also serve `read_subjects` and `read_splits`.

    Returns:
        The cases in the order given; attributes that the file does not have are kept.

    Raises:
        UserError: the file is unreadable, a case (or subject) is missing or has two entries, an entry is not in the
            cohort, or a column cannot be an attribute.
    """
    cases = tuple(cases)
    header, rows, delimiter = _read_rows(path)
    folded = [name.casefold() for name in header]
    key = next((key for key in ("case", "subject") if key in folded), None)
    columns = [index for index, name in enumerate(folded) if name not in {"case", "subject", "split"}]
    if key is None or not columns:
        raise UserError(
            "needs a column case or subject, and one per attribute", "name them in the first line", path=path
        )
    if len(set(folded)) < len(folded) or not all(folded):
        raise UserError("two columns have the same name, or one has none", "name them in the first line", path=path)
    found: dict[str, list[str]] = {}
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"line {number} has {len(row)} cells for {len(header)} columns",
                "put texts with commas in quotes",
                path=path,
            )
        name, entry = row[folded.index(key)], [row[index] for index in columns]
        if not name:
            raise UserError(f"line {number} lacks {key}", "fill it in", path=path)
        if found.setdefault(name, entry) != entry:
            raise UserError(f"{key} {name} has two entries", "remove one", path=path)
    names = [case.name if key == "case" else case.subject for case in cases]
    _match(path, key, {name: "" for name in found}, names)
    attributes: dict[str, dict[str, str | float]] = {name: {} for name in found}
    for position, index in enumerate(columns):
        known = {name: entry[position] for name, entry in found.items() if entry[position]}
        for name, cell in known.items():
            if cell.casefold() in {"nan", "na", "n/a", "null"}:
                raise UserError(
                    f"{header[index]} of {key} {name} is {cell}", "leave the cell empty if it is unknown", path=path
                )
        plain = {name: cell.replace(",", ".") if delimiter == ";" else cell for name, cell in known.items()}
        numbers = all(_NUMBER.fullmatch(cell) for cell in plain.values())
        for name, cell in known.items():
            attributes[name][header[index]] = float(plain[name]) if numbers else cell
    result = tuple(
        replace(case, attributes={**case.attributes, **attributes[name]})
        for case, name in zip(cases, names, strict=True)
    )
    for problem in attribute_problems(result):
        raise UserError(problem.what, problem.remedy, code=problem.code, path=path)
    return result


def _read_fold(path: Path, fold: int) -> dict[str, str]:
    content = read_json_value(path)
    shape = '[{"train": ["CASE", ...], "val": [...]}, ...]'
    if not isinstance(content, list) or not content:
        raise UserError("not a list of folds", f"write {shape}", path=path)
    if not 0 <= fold < len(content):
        raise UserError(
            f"there are folds 0 to {len(content) - 1}, not {fold}", "set splits_fold to one of them", path=path
        )
    entry = content[fold]
    split: dict[str, str] = {}
    for name in ("train", "val"):
        members = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise UserError(f"fold {fold} has no list {name}", f"write {shape}", path=path)
        for member in members:
            if split.setdefault(member, name) != name:
                raise UserError(f"case {member} is in train and in val of fold {fold}", "remove one", path=path)
    return split


def _read_columns(path: Path, value: str, *keys: str) -> tuple[str, dict[str, str]]:
    """Return the first of `keys` that is a column of a CSV file, and a mapping from that column to column `value`."""
    names, rows, _ = _read_rows(path)
    header = [name.casefold() for name in names]
    key = next((key for key in keys if key in header), None)
    if key is None or value not in header:
        raise UserError(f"needs the columns {' or '.join(keys)} and {value}", "name them in the first line", path=path)
    found: dict[str, str] = {}
    for number, row in rows:
        entry = dict(zip(header, row, strict=False))
        if not entry.get(key) or not entry.get(value):
            raise UserError(f"line {number} lacks {key} or {value}", "fill it in", path=path)
        if found.setdefault(entry[key], entry[value]) != entry[value]:
            raise UserError(f"{key} {entry[key]} has two entries for {value}", "remove one", path=path)
    return key, found


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Return the header, the rows that are not empty with their line numbers, and the delimiter (comma, semicolon)."""
    text = read_text(path)
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    try:
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        ]
    except csv.Error as error:
        raise UserError(f"not a CSV file ({error})", "correct it", path=path) from error
    numbered = [(number, row) for number, row in enumerate(rows[1:], start=2) if any(row)]
    return rows[0] if rows else [], numbered, delimiter


def _match(path: Path, key: str, found: Mapping[str, str], wanted: Iterable[str]) -> None:
    wanted = set(wanted)
    for names, fault, remedy in (
        (wanted - found.keys(), "not in this file", "add it"),
        (found.keys() - wanted, "not in the cohort", "remove it, or correct the name"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{key} {min(names)}{more} is {fault}", remedy, path=path)
