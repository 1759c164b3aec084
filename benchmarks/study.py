"""Run a study: the same commands for several draws of labelled subjects, and a table of what each arm is worth.

python benchmarks/study.py few_labels [--plan] [--gather] [--out DIR]

A study is a file in benchmarks/studies. Its commands are stages of medaug, which continue where they stopped, so the
same command continues a study that was stopped. The results are those of all jobs that are done: `results.csv`,
`README.md` and `shares.png` in docs/results/STUDY.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medaug.cohort.manifest import Manifest
from medaug.comparison.job import REMOVE, Job
from medaug.comparison.scores import Scores
from medaug.csv_files import write_csv
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.evaluation.statistics import Resamples
from medaug.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
NUM_RESAMPLES = 10_000
COLUMNS = ("arm", "labelled", "draws", "seeds", "subjects", "dice", "sd_draws", "share", "share_low", "share_high")


@dataclass(frozen=True)
class Row:
    """The result of an arm for a number of labelled subjects.

    Attributes:
        arm: name of the arm.
        labelled: number of labelled subjects, or "all".
        draws: number of draws with a result.
        seeds: number of training seeds per draw.
        subjects: number of scored subjects.
        dice: mean foreground Dice over cases, seeds and draws.
        sd_draws: standard deviation of the draws' means; NaN for one draw.
        share: share of the gap between the arms `start` and `goal` that it closes; NaN while one of them is missing.
        low, high: 95% interval of the share over draws and subjects.
    """

    arm: str
    labelled: str
    draws: int
    seeds: int
    subjects: int
    dice: float
    sd_draws: float
    share: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


def commands(study: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The name of the run folder and the words of every command; first those of `once`, to which draws are compared."""
    folders = [("all", None, study["once"]), *((f"draw_{d}", d, study["each_draw"]) for d in study["draws"])]
    for folder, draw, lines in folders:
        for stage, *words in lines:
            found = [word.replace("{draw}", str(draw)) for word in words]
            runs = f"{study['runs']}/{folder}"
            yield folder, [f"medaug.{stage}", f"experiment={study['experiment']}", f"runs={runs}", *found]


def run(study: dict[str, Any]) -> int:
    """Run all commands in order, note the seconds of each, and stop at the first that fails; returns its status."""
    for folder, words in commands(study):
        begin = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=False).returncode
        costs = ROOT / study["runs"] / "costs.csv"
        costs.parent.mkdir(parents=True, exist_ok=True)
        with costs.open("a", newline="") as file:
            csv.writer(file).writerow([folder, words[0], status, round(time.monotonic() - begin)])
        if status:
            return status
    return 0


def read_tables(study: dict[str, Any], root: Path) -> tuple[dict[tuple[str, str], dict[int, np.ndarray]], list[str]]:
    """Mean foreground Dice (seeds, cases) by (arm, number of labels) and draw, and the subjects of the cases."""
    tables: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    subjects: list[str] = []
    for name in ("all", *(f"draw_{draw}" for draw in study["draws"])):
        run_folder = root / study["runs"] / name / study["experiment"]
        folder = run_folder / ("benchmark" if study["split"] == "test" else "tuning")
        paths = [path for path in sorted(folder.glob("jobs/**/scores.csv")) if path.with_suffix(".sha256").exists()]
        if not paths:
            continue
        cohort = Manifest.load(run_folder / "train" / "manifest.json")
        cases = [case for case in cohort.split(study["split"]) if case.label is not None]
        subjects = [case.subject for case in cases]
        scores = Scores.load(paths, cohort.schema.structures(), folder, REMOVE)
        grouped: dict[tuple[str, str, int], list[Job]] = {}
        for job in dict.fromkeys(job for job, *_ in scores.values):
            labelled = "all" if job.labelled is None else str(job.labelled)
            grouped.setdefault((job.arm, labelled, job.draw or 0), []).append(job)
        for (arm, labelled, draw), jobs in grouped.items():
            table = scores.table(jobs, [case.name for case in cases], MEAN_FOREGROUND, "dice")
            tables.setdefault((arm, labelled), {})[draw] = table
    return tables, subjects


def compare(
    study: dict[str, Any], tables: dict[tuple[str, str], dict[int, np.ndarray]], subjects: Sequence[str]
) -> list[Row]:
    """What each arm reached, and the share of the gap that it closes, in the order of the tables."""
    ends = (study["start"], study.get("goal", (None, None)))
    start, goal = (tables.get((arm, str(labelled))) for arm, labelled in ends)
    rows = []
    for (arm, labelled), by_draw in tables.items():
        means = np.stack([by_draw[draw].mean(axis=0) for draw in sorted(by_draw)])  # (draws, cases)
        spread = float(np.std(means.mean(axis=1), ddof=1)) if len(means) > 1 else float("nan")
        seeds = min(len(table) for table in by_draw.values())
        row = Row(arm, labelled, len(means), seeds, len(set(subjects)), float(means.mean()), spread)
        if start is not None and goal is not None:
            row = Row(*list(vars(row).values())[:7], *share(by_draw, start, goal, subjects))
        rows.append(row)
    return rows


def share(
    arm: dict[int, np.ndarray], start: dict[int, np.ndarray], goal: dict[int, np.ndarray], subjects: Sequence[str]
) -> tuple[float, float, float]:
    """The share of the gap from start to goal that an arm closes, with a 95% percentile interval.

    Arms are compared on the draws that both have. An arm that was trained once, with all labels, is compared on all
    draws. Draws and subjects are resampled; numerator and denominator of the ratio use the same resamples.
    """
    draws = sorted(set(arm) & set(start)) if len(arm) > 1 or len(start) == 1 else sorted(start)

    def table(of: dict[int, np.ndarray]) -> np.ndarray:
        return np.stack([of.get(draw, next(iter(of.values()))).mean(axis=0) for draw in draws])

    first = table(start)
    gained, gap = table(arm) - first, table(goal) - first
    resamples = Resamples.sample(gained.shape, subjects, 0, NUM_RESAMPLES)
    ratios = resamples.means(gained) / resamples.means(gap)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(gained.mean() / gap.mean()), float(low), float(high)


def write(study: dict[str, Any], name: str, rows: Sequence[Row], out: Path) -> None:
    """Write `results.csv`, `README.md` and `shares.png`."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", COLUMNS, (tuple(vars(row).values()) for row in rows))
    start, goal = (f"`{arm}` with {labelled} labels" for arm, labelled in (study["start"], study["goal"]))
    head = f"| arm | labels | draws x seeds | Dice | SD of draws | share of the gap from {start} to {goal} |"
    lines = [f"# Results of the study {name}", "", head, "|---|---|---|---|---|---|"]
    for row in rows:
        part = f"{row.share:.0%} [{row.low:.0%}, {row.high:.0%}]" if np.isfinite(row.share) else "-"
        spread = f"{row.sd_draws:.4f}" if np.isfinite(row.sd_draws) else "-"
        lines.append(f"| {row.arm} | {row.labelled} | {row.draws} x {row.seeds} | {row.dice:.4f} | {spread} | {part} |")
    subjects = rows[0].subjects if rows else 0
    lines += [
        "",
        f"Scored on {subjects} subjects of the {study['split']} split; {len(study['draws'])} draws are planned.",
    ]
    lines += ["", "Commands:", ""]
    lines += [f"    python -m {shlex.join(words)}" for _, words in commands(study)]
    with atomic_write(out / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    draw_dots(rows, out / "shares.png")


def draw_dots(rows: Sequence[Row], path: Path) -> None:
    """Mean Dice of every arm and number of labels with the standard deviation of draws, and the share of the gap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.0 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda row: row.dice)
    places, errors = np.arange(len(ordered)), np.nan_to_num([row.sd_draws for row in ordered])
    axes.errorbar([row.dice for row in ordered], places, xerr=errors, fmt="o", color="#2a5a8a", capsize=3)
    axes.set_yticks(places, [f"{row.arm}, {row.labelled} labels" for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel("mean foreground Dice, with the standard deviation of draws")
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, [f"{row.share:.0%}" if np.isfinite(row.share) else "" for row in ordered])
    beside.set_ylabel("share of the gap")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> int:
    """Run or continue a study, and write the results of the finished jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a file in benchmarks/studies, without .yaml")
    parser.add_argument("--plan", action="store_true", help="print the commands and stop")
    parser.add_argument("--gather", action="store_true", help="run nothing; write the results of the finished jobs")
    parser.add_argument("--out", type=Path, help="folder of the results; default: docs/results/STUDY")
    arguments = parser.parse_args()
    path = ROOT / "benchmarks" / "studies" / f"{arguments.study}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(one.stem for one in path.parent.glob("*.yaml")))
        print(f"study: there is no {path.name}; choose from {names}", file=sys.stderr)
        return 2
    study = yaml.safe_load(path.read_text())
    if arguments.plan:
        for _, words in commands(study):
            print("python -m", shlex.join(words))
        return 0
    status = 0 if arguments.gather else run(study)
    rows = compare(study, *read_tables(study, ROOT))
    if not rows:
        print("study: no job is done yet", file=sys.stderr)
        return status or 2
    write(study, arguments.study, rows, arguments.out or ROOT / "docs" / "results" / arguments.study)
    return status


if __name__ == "__main__":
    sys.exit(main())
