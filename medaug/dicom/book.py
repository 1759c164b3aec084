"""What is wrong with a DICOM tree, and which files each finding means.

No finding has a name, a number or a path of the user's in it: it names the case by its pseudonym and the series by its
number. The files that it means are for the private file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from medaug.cohort.findings import Finding, Severity
from medaug.dicom.headers import Series

COHORT = "cohort"  # in place of a case, where the fault is nobody's alone


@dataclass
class Book:
    """The findings so far, each with the files that it means."""

    files: dict[Finding, tuple[Path, ...]] = field(default_factory=dict)

    def add(self, case: str, severity: Severity, code: str, what: str, remedy: str, files: Iterable[Path]) -> None:
        """Note a finding; the files of one that is noted twice are joined."""
        finding = Finding(case, severity, code, what, remedy)
        self.files[finding] = (*self.files.get(finding, ()), *files)


def files_of(series: Iterable[Series]) -> list[Path]:
    """All files of some series."""
    return [path for one in series for path in one.paths]
