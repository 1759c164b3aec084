"""How often the benchmark's statistics err when the truth is known: simulated differences, 2,000 repeats a setting.

python benchmarks/null_calibration.py --write benchmarks/results/null_calibration.json

The difference between two arms of subject i with training seed s is simulated as

    delta + subject_i + seed_s + residual_is,

all normal, with variance 1 between subjects. The variance between seeds (of the mean over all subjects) and that of the
residual are varied, because they differ from study to study. Counted are, for a true difference of 0, how often
Wilcoxon's test, the test that treats seeds as a sample and the verdict find a difference, and how often the intervals
hold 0; for a true difference of exactly the margin, how often equivalence or "no worse" is claimed; and how often the
interval of a label equivalent holds the true number.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from medaug.comparison.inference import infer
from medaug.evaluation.equivalents import label_equivalent
from medaug.evaluation.statistics import bootstrap_table, verdict

SEEDS, RESAMPLES = 3, 500
COUNTS, SLOPE, TRUE_NUMBER = (4, 8, 16, 32), 1.0, 12.0


MARGIN = 5.0


def differences(rng: np.random.Generator, subjects: int, between_seeds: float, residual: float) -> np.ndarray:
    """Differences (SEEDS, subjects) with mean 0; the last two arguments are variances."""
    seeds = between_seeds**0.5 * rng.normal(size=(SEEDS, 1))
    return rng.normal(size=subjects) + seeds + residual**0.5 * rng.normal(size=(SEEDS, subjects))


def rates(subjects: int, between_seeds: float, residual: float, repeats: int) -> dict[str, float]:
    """Error rates and coverage of one setting."""
    rng, names = np.random.default_rng(0), [f"s{i}" for i in range(subjects)]
    counted: dict[str, int] = {}
    levels = [SLOPE * np.log2(number) for number in (*COUNTS, TRUE_NUMBER)]
    for seed in range(repeats):
        table = differences(rng, subjects, between_seeds, residual)
        interval, tests = bootstrap_table(table, names, seed, RESAMPLES), infer(table, names, True, None)
        shared = rng.normal(size=subjects)  # subjects are as hard for every arm
        noise = [differences(rng, subjects, between_seeds, residual) for _ in levels]
        arms = [level + 3 * shared + one / 2**0.5 for level, one in zip(levels, noise, strict=True)]
        number = label_equivalent(COUNTS, arms[:-1], arms[-1], names, seed, num_resamples=RESAMPLES)
        found = {
            "wilcoxon_errs": tests.p_wilcoxon < 0.05,
            "crossed_errs": tests.p_crossed < 0.05,
            "verdict_errs": verdict(interval, True, p_value=tests.p_crossed) in ("gain", "harm"),
            "bootstrap_covers": interval.low <= 0 <= interval.high,
            "crossed_covers": tests.crossed_low <= 0 <= tests.crossed_high,
            "equivalence_errs": infer(table + MARGIN, names, True, MARGIN).equivalent,
            "no_worse_errs": infer(table - MARGIN, names, True, MARGIN).no_worse,
            "label_equivalent_covers": number.low <= TRUE_NUMBER <= number.high,
        }
        for name, value in found.items():
            counted[name] = counted.get(name, 0) + bool(value)
    return {name: count / repeats for name, count in counted.items()}


def main() -> None:
    """Simulate every setting and print or write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--subjects", type=int, nargs="+", default=[6, 10, 20, 40])
    parser.add_argument("--between-seeds", type=float, nargs="+", default=[0.0, 0.01, 0.05, 0.25, 1.0])
    parser.add_argument("--residual", type=float, nargs="+", default=[0.1, 1.0])
    chosen = parser.parse_args()
    rows = []
    for between_seeds, residual, subjects in itertools.product(chosen.between_seeds, chosen.residual, chosen.subjects):
        about = {"subjects": subjects, "seeds": SEEDS, "between_seeds": between_seeds, "residual": residual}
        rows.append(about | rates(subjects, between_seeds, residual, chosen.repeats))
        print(json.dumps(rows[-1]), flush=True)
    if chosen.write:
        result = {"repeats": chosen.repeats, "resamples": RESAMPLES, "rows": rows}
        chosen.write.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
