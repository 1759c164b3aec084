"""The benchmark's report: one HTML file without scripts or links, made from result types and pictures."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

from medaug.auditing.results import FAITHFULNESS, Audit
from medaug.comparison.breakdown import Group
from medaug.comparison.label_curve import ArmEquivalent
from medaug.comparison.results import Benchmark, Comparison, with_labels
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.evaluation.statistics import FEWEST_SUBJECTS
from medaug.files import atomic_write, write_json
from medaug.inputs import read_bytes, read_yaml
from medaug.paths import of_same_pairs
from medaug.pictures import figures
from medaug.reporting.audited import measure_rows
from medaug.reporting.checklists import filled, save_checklists
from medaug.reporting.contents import LEAST_JUDGE, report_contents, weak_judge
from medaug.reporting.curves import dose_curves
from medaug.reporting.facts import Facts
from medaug.reporting.text import (
    declaration_notes,
    elsewhere_statement,
    format_detectable,
    format_difference,
    format_equivalent,
    format_evidence,
    format_interval,
    metric_of,
    primary_statement,
    warnings_of,
)
from medaug.screening.results import ScreeningResult
from medaug.screening.table import rule_words

log = logging.getLogger(__name__)

MAX_TRAINING_PICTURES = 4
JUDGED = {
    "real_validation": "real validation images against their own masks",
    "synthetic": "synthetic images against their own masks",
    "shuffled": "synthetic images against other masks (chance)",
}


def write_report(
    benchmark: Benchmark,
    equivalents: Sequence[ArmEquivalent],
    run: Path,
    out: Path,
    groups: Sequence[Group] = (),
) -> None:
    """Render a benchmark, and results of other stages of the run, to one HTML file.

    `report.json` and `checklists.csv` are written beside it. Apart from the benchmark, the report shows these if they
    exist: the audit, pictures of the audit and of the training, and the contact sheet of the pairs. An audit of other
    pairs than the benchmark's is left out.

    Args:
        benchmark: results.
        equivalents: what its arms are worth in labels (`label_equivalents`).
        run: folder of the experiment.
        out: HTML file to write, in the folder of the benchmark.
        groups: the primary comparison in groups of test scans.

    Raises:
        UserError: a result file is damaged, or scores are missing.
    """
    run = Path(run).resolve()
    audit, pairs = (run / of_same_pairs(out.parent, stage).name for stage in ("audit", "generate"))
    shown = _shows_audit(audit, out.parent)
    audited = Audit.load(audit) if shown and (audit / "faithfulness.json").exists() else None
    facts = Facts(benchmark, audited, ScreeningResult.load(pairs))
    html = _template().render(
        benchmark=benchmark,
        metrics={name: metric_of(name) for name in benchmark.scores.metrics},
        warnings=warnings_of(benchmark, audited is not None and audited.smoke),
        audit=audited,
        judged=_judged(audited),
        measures=measure_rows(audited),
        fewest_subjects=FEWEST_SUBJECTS,
        dice_plot=_dice_plot(benchmark),
        equivalents=equivalents,
        forest_plot=_forest_plot(benchmark),
        groups=groups,
        curves=_curves(benchmark),
        cases=_cases(out.parent / "cases.png"),
        statement=primary_statement(benchmark),
        notes=declaration_notes(benchmark),
        elsewhere_statement=elsewhere_statement(benchmark),
        weak_judge=weak_judge(audited),
        least_judge=LEAST_JUDGE,
        guidance_plot=_guidance_plot(audited),
        screening=_screening(pairs),
        pictures=_pictures(run, pairs, audit if shown else None),
        checklists=filled(facts),
        config=json.dumps(benchmark.config, indent=2, ensure_ascii=False),
    )
    save_checklists(out.with_name("checklists.csv"), facts)
    with atomic_write(out) as temporary:
        temporary.write_text(html, "utf-8")
    write_json(out.with_suffix(".json"), report_contents(benchmark, equivalents, audited))


def _shows_audit(audit: Path, benchmark: Path) -> bool:
    """Whether there is an audit of the benchmark's pairs; warns about one of other pairs."""
    shown = audit.exists() and _same_pairs(audit, benchmark)
    if audit.exists() and not shown:
        log.warning(
            "%s: its pairs or its cohort are not those of the benchmark, so the report leaves it out; run medaug.audit "
            "again",
            audit,
        )
    return shown


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"interval": format_interval, "difference": format_difference, "evidence": format_evidence}
    environment.filters |= {"metric": metric_of, "detectable": format_detectable, "equivalent": format_equivalent}
    environment.globals["verdict_class"] = _verdict_class
    environment.filters["arm"] = lambda one: with_labels(one.arm, one.labelled)
    return environment.from_string((files("medaug.reporting") / "report.html.jinja").read_text("utf-8"))


def _verdict_class(comparison: Comparison | None) -> str:
    """Name of the style of a verdict."""
    return comparison.verdict if comparison is not None and comparison.verdict in ("gain", "harm") else "none"


def _judged(audit: Audit | None) -> list[tuple[str, Any]]:
    """Rows of the audit's faithfulness: what was judged, and its interval."""
    if audit is None:
        return []
    found = [(images, audit.interval("faithfulness", images)) for images in FAITHFULNESS]
    return [(JUDGED[images], interval) for images, interval in found if interval is not None]


def _screening(synthetic: Path) -> dict[str, Any] | None:
    """What the screening of the pairs rejected: a sentence, and rows of (rule, note, rejected, share)."""
    result = ScreeningResult.load(synthetic)
    if result is None:
        return None
    rows = [(*rule_words(name), f"{rule.rejected} of {rule.judged}", rule.share) for name, rule in result.rules.items()]
    return {"result": result, "rows": rows}


def _dice_plot(benchmark: Benchmark) -> str:
    """Plot of the Dice of each case, the mean over seeds and structures; the bars are the intervals of the table."""
    arms = {
        title: (
            benchmark.table(arm, MEAN_FOREGROUND, "dice", labelled).mean(axis=0),
            benchmark.mean(arm, MEAN_FOREGROUND, "dice", labelled),
        )
        for title, arm, labelled in benchmark.rows
    }
    return _png_uri(figures.png(figures.dice_plot(arms)))


def _forest_plot(benchmark: Benchmark) -> dict[str, str] | None:
    """Every pair of arms in the metric and structure of the primary comparison: picture and text for its absence."""
    primary = benchmark.primary
    if primary is None:
        return None
    metric = metric_of(primary.metric)
    shown = [one for one in benchmark.comparisons if (one.metric, one.structure) == (primary.metric, primary.structure)]
    rows = [(f"{with_labels(one.arm, one.labelled)}\nagainst {one.baseline}", one.difference) for one in shown]
    better = "right of 0 is better" if metric.higher_is_better else "left of 0 is better"
    label = f"difference in {primary.structure} {metric.heading}, 95% interval ({better})"
    said = "; ".join(
        f"{name}: {format_difference(one)}".replace("\n", " ") for (name, _), one in zip(rows, shown, strict=True)
    )
    return {"uri": _png_uri(figures.png(figures.forest_plot(rows, label))), "alt": f"Forest plot, {label}. {said}"}


def _guidance_plot(audit: Audit | None) -> str | None:
    points = audit.guidance if audit is not None else {}
    return _png_uri(figures.png(figures.guidance_plot(points))) if len(points) > 1 else None


def _same_pairs(audit: Path, benchmark: Path) -> bool:
    """Whether audit and benchmark used the same pairs and, if both recorded it, the same cohort."""
    one, other = (
        read_yaml(path) if path.exists() else {} for path in (audit / "config.yaml", benchmark / "config.yaml")
    )
    cohorts = {config["cohort"] for config in (one, other) if "cohort" in config}
    return one.get("pairs") == other.get("pairs") and len(cohorts) < 2


def _pictures(run: Path, pairs: Path, audit: Path | None) -> list[tuple[str, str]]:
    """Caption and data URI of the pictures of other stages; of a training, a few evenly spaced ones, with the last."""
    sheet = pairs / "contact_sheet.png"
    audited = [] if audit is None else sorted(audit.glob("*.png"), key=_natural)
    training = sorted((run / "train" / "pictures").glob("*.png"), key=_natural)
    places = np.linspace(0, len(training) - 1, min(len(training), MAX_TRAINING_PICTURES)).round().astype(int)
    found = [
        *[("Synthetic pairs: image, and image with its mask outlined", sheet)][: sheet.exists()],
        *((f"Audit: {_words(path)}", path) for path in audited),
        *((f"During training: {_words(training[place])}", training[place]) for place in places),
    ]
    return [(caption, _png_uri(read_bytes(path))) for caption, path in found]


def _curves(benchmark: Benchmark) -> list[dict[str, str]]:
    """Pictures of the score over each dose, with their titles and the same in words."""
    primary, shown = benchmark.primary, []
    name, structure = ("dice", MEAN_FOREGROUND) if primary is None else (primary.metric, primary.structure)
    metric = metric_of(name)
    label = f"{structure} {metric.heading}"
    for curves in dose_curves(benchmark):
        points = {
            arm: ", ".join(f"{dose:g}: {format_interval(one, metric.digits)}" for dose, one in line)
            for arm, line in curves.lines.items()
        }
        said = "; ".join(f"{arm} at {words}" for arm, words in points.items())
        uri = _png_uri(figures.png(figures.curve_plot(curves.lines, curves.dose, label)))
        shown.append({"uri": uri, "title": f"{label} over {curves.dose}", "alt": f"{label} over {curves.dose}. {said}"})
    return shown


def _cases(path: Path) -> str | None:
    return _png_uri(read_bytes(path)) if path.exists() else None


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _words(path: Path) -> str:
    return re.sub(r"[_-]+", " ", path.stem)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which step-900 comes before step-1000."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
