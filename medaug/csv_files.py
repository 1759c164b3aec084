"""CSV tables of results: written so that no spreadsheet runs what is in them, and read back as they were."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence

from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.inputs import read_text

# A spreadsheet takes a cell that begins so for a formula, and may run it; an apostrophe in front makes it a text.
_FORMULA = re.compile(r"'*[=+\-@\t\n]")


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all; texts that a spreadsheet would run get an apostrophe in front.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([_harmless(column) for column in columns])
        writer.writerows([_harmless(cell) for cell in row] for row in rows)


def read_csv(path: str | os.PathLike[str], columns: Sequence[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a table that `write_csv` wrote, each as {column: text}.

    Args:
        path: the file.
        columns: that it must have.
        remedy: what the user is advised to do where it is damaged.

    Raises:
        UserError: unreadable, not CSV, a column is missing, or a row has more or fewer cells than there are columns.
    """
    rows: list[dict[str, str]] = []
    lines = csv.reader(io.StringIO(read_text(path, remedy=remedy), newline=""), strict=True)
    try:
        header = [_original(cell) for cell in next(lines, [])]
        if missing := [column for column in columns if column not in header]:
            raise UserError(f"no column {', '.join(missing)}", remedy, path=path)
        for row in lines:
            if len(row) != len(header):
                raise UserError(f"line {lines.line_num} is damaged", remedy, path=path)
            rows.append(dict(zip(header, map(_original, row), strict=True)))
    except csv.Error as error:
        raise UserError(f"line {lines.line_num} is damaged ({error})", remedy, path=path) from error
    return rows


def number(text: str, path: str | os.PathLike[str], remedy: str, absent: str | None = None) -> float:
    """A cell as a number; NaN where it holds `absent`.

    Raises:
        UserError: it is not a number, or NaN or infinite; the file is named.
    """
    if text == absent:
        return math.nan
    try:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    except (TypeError, ValueError):
        raise UserError(f"{text!r:.60} is not a number", remedy, path=path) from None


def _harmless(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r", " ")  # which csv writes in a way that it does not read back
    if not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell  # such as -0.004


def _original(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
