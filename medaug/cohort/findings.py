"""One fault of a case or a cohort: what is wrong, and what to do about it."""

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
        case: name of the case, or of the cohort where no single case is at fault.
        severity: "error" prevents the manifest from being written; "warning" should be looked at; "note" is worth
            knowing.
        code: the kind of fault, one per check, in words with hyphens ("shape-differs").
        what: the fault, with the numbers; without the path where `path` is given.
        remedy: what the user can do about it.
        path: the file at fault, where the finding shows its whole path.
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
        """What is wrong, with the path in front if there is one."""
        return sentence(self.what, self.path)

    def to_mapping(self) -> dict[str, str | None]:
        """Return the fields as a dictionary."""
        return asdict(self)

    @classmethod
    def from_error(cls, case: str, code: str, error: UserError) -> Finding:
        """Return an error of a reader as a finding, with its path and with what it quotes of the file."""
        path = None if error.path is None else str(error.path)
        return cls(case, "error", code, error.full, error.remedy, path)
