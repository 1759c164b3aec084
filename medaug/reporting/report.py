"""The benchmark's report: one HTML file without scripts or links, made from result files alone."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medaug.csv_files import number, read_csv
from medaug.errors import UserError, printable
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.evaluation.statistics import FEWEST_SUBJECTS, Interval, bootstrap_table
from medaug.files import atomic_write
from medaug.inputs import parsing, read_bytes, read_json, read_yaml
from medaug.pictures import figures

log = logging.getLogger(__name__)

DIGITS = {"dice": 3, "hd95": 2}
NAMES = {"dice": "Dice", "hd95": "HD95"}
UNITS = {"dice": "", "hd95": " mm"}
MAX_TRAINING_PICTURES = 4
FAITHFULNESS = ("ratio", "ratio_low", "floor", "smoke", "judge", "sharpness")
SMOKE = "Smoke run (preset=smoke): it shows that the parts fit together. Its numbers and verdicts mean nothing."
_AGAIN = "remove the benchmark's finished.json and run it again, which keeps the jobs that are done"

Scores = dict[tuple[str, str, str], NDArray[np.float64]]
"""(arm, class, metric) -> table (num_seeds, num_cases), rows and columns in the order of summary.json."""


def arm_table(benchmark_folder: Path) -> list[dict[str, Any]]:
    """Mean and 95% interval of every arm, for all foreground classes together and for each.

    Intervals resample subjects and training seeds (`medaug.evaluation.statistics`). `print_table` and the
    report show these same rows.

    Returns:
        One dict per arm and class: "arm", "class", "dice" and "hd95" (`Interval`, HD95 in mm).

    Raises:
        UserError: result files are missing, unreadable or incomplete.
    """
    summary = _read_summary(benchmark_folder / "summary.json")
    return _arm_rows(summary, _read_scores(benchmark_folder / "scores.csv", summary))


def print_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the rows of `arm_table`: per arm a line for all classes together, then one per class."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="mean [95% interval over subjects and seeds]")
    table.add_column("arm, class", overflow="fold")
    for heading in ("Dice", "HD95 (mm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    arm = None
    for row in rows:
        if row["arm"] != arm:
            arm = row["arm"]
            table.add_row(Text(printable(arm), style="bold"))
        cells = (Text(format_interval(row[metric], DIGITS[metric])) for metric in DIGITS)
        table.add_row(Text(f"  {printable(row['class'])}"), *cells)
    console.print(table)


def print_verdicts(benchmark_folder: Path, console: Console) -> None:
    """Print what the report says first: that a smoke run means nothing, the verdicts, and the trivial baseline."""
    summary = _read_summary(benchmark_folder / "summary.json")
    if summary.get("smoke"):
        console.print(Text(f"{SMOKE}\n", style="bold"), soft_wrap=True)
    for c in _headlines(_read_comparisons(benchmark_folder / "comparison.csv")):
        line = f"{c['arm']} against {c['baseline']}, {c['class']} {c['metric_name']}: {c['result']} ({c['evidence']})"
        console.print(Text(line), soft_wrap=True)
    if floor := summary.get("floor"):
        console.print(Text(f"trivial baseline, {MEAN_FOREGROUND} Dice: {floor[MEAN_FOREGROUND]:.3f}"), soft_wrap=True)


def write_report(benchmark_folder: Path, out: Path) -> None:
    """Render the results of the benchmark, and of the stages in the folders beside it, to one HTML file.

    Needs `summary.json`, `scores.csv` and `comparison.csv`; takes up `../audit/faithfulness.json`,
    `../audit/*.png`, `../synthetic/contact_sheet.png` and `../train/pictures/*.png` where they exist. An audit of other
    pairs than the benchmark's is left out.

    Raises:
        UserError: result files are missing, unreadable or incomplete.
    """
    benchmark_folder = Path(benchmark_folder)
    run = benchmark_folder.resolve().parent
    summary = _read_summary(benchmark_folder / "summary.json")
    scores = _read_scores(benchmark_folder / "scores.csv", summary)
    rows = _arm_rows(summary, scores)
    comparisons = _read_comparisons(benchmark_folder / "comparison.csv")
    audit = run / "audit"
    shown = audit.exists() and _of_the_same(audit, benchmark_folder)
    if audit.exists() and not shown:
        log.warning("%s: of other pairs or another cohort, so the report leaves it out; run medaug.audit again", audit)
    found = audit / "faithfulness.json"
    faithfulness = _read_faithfulness(found) if shown and found.exists() else None

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["interval"] = format_interval
    template = environment.from_string((files("medaug.reporting") / "report.html.jinja").read_text("utf-8"))
    html = template.render(
        summary=summary,
        arms={arm: [row for row in rows if row["arm"] == arm] for arm in summary["arms"]},
        comparisons=comparisons,
        headlines=_headlines(comparisons),
        smoke=SMOKE if summary.get("smoke") or (faithfulness or {}).get("smoke") else None,
        floor=summary.get("floor"),
        faithfulness=faithfulness,
        fewest_subjects=FEWEST_SUBJECTS,
        num_subjects=len(set(summary["subjects"].values())),
        dice_plot=_dice_picture(rows, scores),
        guidance_plot=_guidance_picture(faithfulness),
        pictures=_pictures(run, shown),
        config=json.dumps(summary.get("config", {}), indent=2, ensure_ascii=False),
        digits=DIGITS,
    )
    with atomic_write(out) as temporary:
        temporary.write_text(html, "utf-8")


def format_interval(interval: Interval, digits: int, signed: bool = False) -> str:
    """`0.845 [0.830, 0.860]`; "no interval" in the brackets when it could not be estimated."""
    sign = "+" if signed else ""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    if math.isnan(interval.low):
        return f"{mean} [no interval]"
    return f"{mean} [{low}, {high}]"


def _arm_rows(summary: Mapping[str, Any], scores: Scores) -> list[dict[str, Any]]:
    subjects = list(summary["subjects"].values())
    seed = int((summary.get("config", {}).get("benchmark") or {}).get("bootstrap_seed", 0))
    return [
        {
            "arm": arm,
            "class": name,
            **{metric: bootstrap_table(scores[arm, name, metric], subjects, seed) for metric in DIGITS},
        }
        for arm in summary["arms"]
        for name in (MEAN_FOREGROUND, *summary["classes"])
    ]


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path, _AGAIN)
    with parsing(path, _AGAIN):
        for key in ("arms", "classes"):
            if not all(isinstance(name, str) for name in summary[key]):
                raise TypeError(f"{key} is {summary[key]!r:.60}")
        summary["seeds"] = [int(seed) for seed in summary["seeds"]]
        summary["subjects"] = {case: str(subject) for case, subject in summary["subjects"].items()}
    return summary


def _read_scores(path: Path, summary: Mapping[str, Any]) -> Scores:
    """Complete tables of every arm, class and metric, the mean over foreground classes added."""
    values = {
        (row["arm"], row["class"], row["metric"], row["seed"], row["case"]): number(row["value"], path, _AGAIN)
        for row in read_csv(path, ("arm", "seed", "case", "class", "metric", "value"), _AGAIN)
    }
    scores: Scores = {}
    for arm, metric in itertools.product(summary["arms"], DIGITS):
        for name in summary["classes"]:
            keys = [(arm, name, metric, str(s), c) for s in summary["seeds"] for c in summary["subjects"]]
            missing = next((key for key in keys if key not in values), None)
            if missing:
                raise UserError(
                    f"{path}: no {metric} of arm {arm}, class {name}, seed {missing[3]}, case {missing[4]}; "
                    "run the benchmark again to complete it"
                )
            scores[arm, name, metric] = np.array([values[key] for key in keys]).reshape(
                len(summary["seeds"]), len(summary["subjects"])
            )
        tables = [scores[arm, name, metric] for name in summary["classes"]]
        scores[arm, MEAN_FOREGROUND, metric] = np.mean(tables, axis=0)
    return scores


def _read_comparisons(path: Path) -> list[dict[str, Any]]:
    """Rows of comparison.csv with numbers read and a sentence made."""
    columns = (
        "arm", "baseline", "class", "metric", "mean_difference", "low", "high",
        "num_subjects", "num_seeds", "verdict",
    )  # fmt: skip
    rows = []
    for row in read_csv(path, columns, _AGAIN):
        metric = row["metric"]
        mean, low, high = (number(row[key], path, _AGAIN, "nan") for key in ("mean_difference", "low", "high"))
        subjects, seeds = (int(number(row[key], path, _AGAIN)) for key in ("num_subjects", "num_seeds"))
        interval = Interval(mean, low, high, subjects, subjects)
        difference = format_interval(interval, DIGITS.get(metric, 3), signed=True) + UNITS.get(metric, "")
        rows.append(
            {
                **row,
                "metric_name": NAMES.get(metric, metric),
                "difference": difference,
                "result": f"{difference}, {row['verdict']}",
                "evidence": f"{_count(subjects, 'subject')}, {_count(seeds, 'seed')}",
            }
        )
    return rows


def _headlines(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons that come first: of all foreground classes together."""
    return [c for c in comparisons if c["class"] == MEAN_FOREGROUND] or comparisons


def _read_faithfulness(path: Path) -> dict[str, Any]:
    """faithfulness.json with intervals in place of dicts; every part may be absent."""
    remedy = "remove the folder and run medaug.audit again"
    stored = read_json(path, remedy)
    result: dict[str, Any] = {key: stored.get(key) for key in FAITHFULNESS}
    labels = {
        "real_validation": "real validation images against their own masks",
        "synthetic": "synthetic images against their own masks",
        "shuffled": "synthetic images against other masks (chance)",
    }
    with parsing(path, remedy):
        result["rows"] = [(text, _interval(stored[key])) for key, text in labels.items() if stored.get(key)]
        result["guidance"] = [(float(row["guidance_scale"]), _interval(row)) for row in stored.get("guidance") or []]
    return result


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if row[key] is None else float(row[key]) for key in ("low", "high"))
    return Interval(float(row["mean"]), low, high, int(row["n"]), int(row["n"]))


def _dice_picture(rows: Sequence[Mapping[str, Any]], scores: Scores) -> str:
    """Per case, Dice is the mean over seeds and foreground classes; the bar is the table's."""
    arms = {
        row["arm"]: (scores[row["arm"], MEAN_FOREGROUND, "dice"].mean(axis=0), row["dice"])
        for row in rows
        if row["class"] == MEAN_FOREGROUND
    }
    return _png_uri(figures.png(figures.dice_plot(arms)))


def _guidance_picture(faithfulness: Mapping[str, Any] | None) -> str | None:
    points = dict(faithfulness["guidance"]) if faithfulness else {}
    return _png_uri(figures.png(figures.guidance_plot(points))) if len(points) > 1 else None


def _of_the_same(audit: Path, benchmark: Path) -> bool:
    """Whether two stages' results are of the same pairs and, where both say of which, of the same cohort."""
    one, other = (
        read_yaml(path) if path.exists() else {} for path in (audit / "config.yaml", benchmark / "config.yaml")
    )
    cohorts = {config["cohort"] for config in (one, other) if "cohort" in config}
    return one.get("pairs") == other.get("pairs") and len(cohorts) < 2


def _pictures(run: Path, audited: bool) -> list[tuple[str, str]]:
    """(caption, data URI) of the pictures of other stages; of training, a few evenly spaced to the last."""
    sheet = run / "synthetic" / "contact_sheet.png"
    audit = sorted((run / "audit").glob("*.png"), key=_natural) if audited else []
    training = sorted((run / "train" / "pictures").glob("*.png"), key=_natural)
    places = np.linspace(0, len(training) - 1, min(len(training), MAX_TRAINING_PICTURES)).round().astype(int)
    found = [
        *[("Synthetic pairs: image, and image with its mask outlined", sheet)][: sheet.exists()],
        *((f"Audit: {_words(path)}", path) for path in audit),
        *((f"During training: {_words(training[place])}", training[place]) for place in places),
    ]
    return [(caption, _png_uri(read_bytes(path))) for caption, path in found]


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _words(path: Path) -> str:
    return re.sub(r"[_-]+", " ", path.stem)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which step-900 comes before step-1000."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
