"""`Finding`: one problem of a case or a cohort, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from medaug.errors import UserError, sentence

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case, and what to do about it.

    The fields are the data; the text is composed from them last, and no code searches it.

    Attributes:
        case: name of the case, or of the cohort if no single case is at fault.
        severity: "error" prevents the manifest from being written; "warning" should be looked at; "note" is
            information.
        code: the kind of problem, one per check, in words with hyphens ("shape-differs").
        what: the problem, with the numbers; without the path if `path` is given.
        remedy: what the user can do about it.
        path: full path of the file at fault, if the finding is to show it.
    """

    case: str
    severity: Severity
    code: str
    what: str
    remedy: str
    path: str | None = None

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.severity}: {self.case}: {self.statement}; {self.remedy}"

    @property
    def statement(self) -> str:
        """What is wrong, preceded by the path if there is one."""
        return sentence(self.what, self.path)

    def to_mapping(self) -> dict[str, str | None]:
        """Return the fields as a dictionary."""
        return asdict(self)

    @classmethod
    def from_error(cls, case: str, code: str, error: UserError) -> Finding:
        """Turn a reader's error into a finding; its path and the detail that it quotes are kept."""
        path = None if error.path is None else str(error.path)
        return cls(case, "error", code, error.full, error.remedy, path)
