"""What the report says, as plain values: `report.json` beside the HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medaug.auditing.results import Audit
from medaug.comparison.label_curve import ArmEquivalent
from medaug.comparison.results import Benchmark, Comparison
from medaug.reporting.text import (
    declaration_notes,
    elsewhere_statement,
    format_equivalent,
    primary_statement,
    warnings_of,
)

LEAST_JUDGE = 0.3
"""If the judge's Dice on real scans is below this, it is too weak for the report to show its ratio at the top."""


def weak_judge(audit: Audit | None) -> float | None:
    """The judge's Dice on real validation scans if it is below `LEAST_JUDGE`; None if it is not, or unknown."""
    interval = audit.interval("faithfulness", "real_validation") if audit is not None else None
    return interval.mean if interval is not None and interval.mean < LEAST_JUDGE else None


def report_contents(benchmark: Benchmark, equivalents: Sequence[ArmEquivalent], audit: Audit | None) -> dict[str, Any]:
    """The primary comparison, all comparisons and the audit's ratio, as `report.json` holds them."""
    primary, smoke = benchmark.primary, audit is not None and audit.smoke
    return {
        "experiment": benchmark.experiment,
        "phantom": benchmark.phantom,
        "warnings": warnings_of(benchmark, smoke) + declaration_notes(benchmark),
        "statement": primary_statement(benchmark),
        "primary": None if primary is None else _plain(primary),
        "declared": [one.to_mapping() for one in benchmark.declared],
        "evaluated": benchmark.evaluated,
        "looks": benchmark.looks,
        "pairs_of": benchmark.pairs_of,
        "leak_excluded": benchmark.leak_excluded,
        "num_test_subjects": benchmark.num_test_subjects,
        "seeds": list(benchmark.seeds),
        "comparisons": [_plain(one) for one in benchmark.comparisons],
        "external": None if benchmark.elsewhere is None else _elsewhere(benchmark, benchmark.elsewhere),
        "label_equivalents": [{**_plain(one), "text": format_equivalent(one)} for one in equivalents],
        "faithfulness_ratio": audit.ratio if audit is not None and weak_judge(audit) is None else None,
    }


def _elsewhere(benchmark: Benchmark, elsewhere: Benchmark) -> dict[str, Any]:
    return {
        "cohort": elsewhere.cohort,
        "phantom": elsewhere.phantom,
        "num_test_subjects": elsewhere.num_test_subjects,
        "statement": elsewhere_statement(benchmark),
        "comparisons": [_plain(one) for one in elsewhere.comparisons],
    }


def _plain(result: Comparison | ArmEquivalent) -> dict[str, Any]:
    """A result without NaN and infinity, which JSON does not have."""
    return {key: _without_nan(value) for key, value in asdict(result).items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
