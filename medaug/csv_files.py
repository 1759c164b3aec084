"""CSV tables of results, written so that spreadsheets do not run cells as formulas, and read back unchanged."""

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

# A spreadsheet treats a cell that begins like this as a formula and may run it; an apostrophe in front makes it text.
_FORMULA = re.compile(r"'*[=+\-@\t\n]")


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically; texts that a spreadsheet would run as formulas get an apostrophe in front.

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
        columns: columns that the file must have.
        remedy: what the user should do if it is damaged.

    Raises:
        UserError: the file cannot be read or is not CSV, a column is missing, or a row has too many or too few cells.
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
    """A cell as a number; NaN if its text is `absent`.

    Raises:
        UserError: the cell is not a finite number; names the file.
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
    cell = cell.replace("\r", " ")  # the csv module cannot read back the carriage returns that it writes
    if not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell  # a number, such as -0.004


def _original(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
