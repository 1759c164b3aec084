"""Findings for people (a table) and for programs (JSON)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medaug.imaging.preflight.findings import Finding, Report, Severity

if TYPE_CHECKING:
    from rich.table import Table

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def report_table(findings: Sequence[Finding], shown: int = 5) -> Table:
    """The findings as a table, errors first, of equal kind side by side; of each kind `shown`, and how many more."""
    from rich.table import Table
    from rich.text import Text

    table = Table("severity", "case", "what", "remedy")
    kinds: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.severity, finding.code].append(finding)
    for severity in _ORDER:
        for (of_severity, code), alike in kinds.items():
            if of_severity != severity:
                continue
            for finding in alike[:shown]:
                # Text, not markup: names of files may hold brackets.
                words = map(Text, (finding.case, finding.what, finding.remedy))
                table.add_row(Text(severity, _STYLES[severity]), *words)
            if len(alike) > shown:
                table.add_row("", "", f"and {len(alike) - shown} more of this kind ({code})", "")
    return table


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON values: counts by severity, findings in their order, and the facts of each case."""
    return {
        **{f"{severity}s": report.count(severity) for severity in _ORDER},
        "findings": [finding.to_mapping() for finding in report.findings],
        "cases": {name: facts.to_mapping() for name, facts in report.facts.items()},
    }
