"""The measures of an audit as rows of text, for the report and the console."""

from __future__ import annotations

import math
from typing import Any

from medaug.auditing.measures import MEASURES, Measure
from medaug.auditing.results import Audit
from medaug.reporting.text import format_interval

IMAGES = {
    "real_validation": "real validation images",
    "synthetic": "synthetic images",
    "shuffled": "synthetic images, masks shuffled",
    "real_halves": "real training images against others",
    "training": "real training images",
}


def measure_rows(audit: Audit | None) -> list[dict[str, Any]]:
    """The audit's other measures, each with title, note and rows of (images, value, number of images)."""
    shown = []
    for name, groups in (audit.results if audit is not None else {}).items():
        if name in ("faithfulness", "guidance") or not groups:
            continue
        known = name in MEASURES  # or of a package that is no longer installed
        title, unit, digits = (
            (MEASURES[name].title, MEASURES[name].unit, MEASURES[name].digits) if known else (name, "", 3)
        )
        rows = []
        for group in groups:
            value = group.interval
            text = format_interval(value, digits) if not math.isnan(value.low) else f"{value.mean:.{digits}f}"
            images = IMAGES.get(group.images, group.images.replace("_", " "))
            rows.append((images, f"{text} {unit}".rstrip(), value.n or ""))
        note = _explained(MEASURES[name]) if known else ""
        shown.append({"title": title, "note": note, "rows": rows})
    return shown


def _explained(measure: Measure) -> str:
    better = {
        True: "higher is better",
        False: "lower is better",
        None: "synthetic images should have the value of real ones",
    }
    return f"{measure.note}; {better[measure.higher_is_better]}"
