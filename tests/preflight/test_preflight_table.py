"""The table of findings: errors first, and many of one kind shortened to a few lines."""

from __future__ import annotations

import io

from rich.console import Console

from medaug.cohort.findings import Finding
from medaug.preflight import report_table


def test_the_table_counts_omitted_findings() -> None:
    many = [Finding(f"case_{i}", "warning", "empty-label", f"label [{i}] is empty", "look") for i in range(300)]
    table = report_table([*many, Finding("x", "error", "constant", "is constant", "export again")])
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert text.index("error") < text.index("warning")
    assert "label [4] is empty" in text and "label [5]" not in text
    assert "and 295 more of this kind (empty-label)" in text
