"""One fault of a case or a cohort: what is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from medaug.errors import UserError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case, and what to do about it.

    Attributes:
        case: name of the case, or of the cohort where the fault is nobody's alone.
        severity: "error" keeps the manifest from being written; "warning" wants a look; "note" is worth knowing.
        code: the kind of fault, one per check, in words with hyphens ("shape-differs").
        what: the fault, with the file and the numbers.
        remedy: the way out.
    """

    case: str
    severity: Severity
    code: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.severity}: {self.case}: {self.what}; {self.remedy}"

    def to_mapping(self) -> dict[str, str]:
        """Return the fields as a dictionary of texts."""
        return asdict(self)

    @classmethod
    def from_error(cls, case: str, code: str, error: UserError | str) -> Finding:
        """An error "what; remedy" of a reader as a finding."""
        what, _, remedy = str(error).rpartition("; ")
        return cls(case, "error", code, what, remedy)
