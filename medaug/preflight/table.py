"""Findings for people (a table) and for programs (JSON)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from medaug.cohort.findings import Finding, Severity
from medaug.errors import printable
from medaug.preflight.facts import Report

if TYPE_CHECKING:
    from rich.table import Table

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def summary(findings: Sequence[Finding], shown: int = 5) -> Iterator[tuple[Severity, list[Finding], str]]:
    """Group findings of the same kind, errors first: severity, at most `shown` findings, and a line about the rest.

    `shown` + 1 findings are all listed, because a line "and 1 more" would not save a line.
    """
    kinds: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.severity, finding.code].append(finding)
    for severity in _ORDER:
        for (of_severity, code), alike in kinds.items():
            if of_severity != severity:
                continue
            first = alike if len(alike) <= shown + 1 else alike[:shown]
            more = len(alike) - len(first)
            yield severity, first, f"and {more} more of this kind ({code}); report=FILE.json lists all" if more else ""


def report_table(findings: Sequence[Finding], shown: int = 5) -> Table:
    """Return the findings as a table, ordered and shortened by `summary`."""
    from rich.table import Table
    from rich.text import Text

    table = Table("severity", "case", "what", "remedy")
    for severity, alike, rest in summary(findings, shown):
        for finding in alike:
            # Text, not markup: file names may contain brackets.
            words = severity, finding.case, finding.statement, finding.remedy
            table.add_row(*(Text(printable(word), _STYLES[severity] if word is severity else "") for word in words))
        if rest:
            table.add_row("", "", rest, "")
    return table


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values: counts by severity, findings in order, and the facts of each case."""
    return {
        **{f"{severity}s": report.count(severity) for severity in _ORDER},
        "findings": [finding.to_mapping() for finding in report.findings],
        "cases": {name: facts.to_mapping() for name, facts in report.facts.items()},
    }
