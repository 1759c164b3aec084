"""The findings of a DICOM tree, and the files that each of them is about.

A finding contains no name, number or path of the user: it gives the case by its pseudonym and the series by its number.
The files are written to the private file only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from medaug.cohort.findings import Finding, Severity
from medaug.dicom.headers import Series

COHORT = "cohort"  # used instead of a case if no single case is at fault


@dataclass
class FindingLog:
    """The findings so far, each with the files that it is about."""

    files: dict[Finding, tuple[Path, ...]] = field(default_factory=dict)

    def add(self, case: str, severity: Severity, code: str, what: str, remedy: str, files: Iterable[Path]) -> None:
        """Add a finding; if it is there already, its files are added to it."""
        finding = Finding(case, severity, code, what, remedy)
        self.files[finding] = (*self.files.get(finding, ()), *files)


def files_of(series: Iterable[Series]) -> list[Path]:
    """Return all files of some series."""
    return [path for one in series for path in one.paths]
