"""Curves over labels and shares hold the table's means, and the report shows one picture for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pages import Page

from medaug.comparison.job import Job
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.reporting.curves import dose_curves
from medaug.reporting.report import write_report

SYNTHETIC = "real+classical+synthetic"
SHARES = {"real+classical": 0.0, f"{SYNTHETIC}_x0.5": 0.5, f"{SYNTHETIC}_x2": 2.0}


@pytest.fixture
def bench(tmp_path):
    """Dice is 0.5 + 0.1 per synthetic volume, 0.1 less with 4 labels than with all 12."""
    rng, subjects = np.random.default_rng(0), {f"c{i}": f"s{i}" for i in range(7)}
    values = {
        (Job(arm, 0, labelled=num, draw=None if num is None else 0), case, "lesion", "dice"): 0.5
        + 0.1 * dose
        - (0.1 if num else 0)
        + rng.normal(0, 0.01)
        for arm, dose in SHARES.items()
        for num in (None, 4)
        for case in subjects
    }
    scores, floor = Scores(values, ("lesion",), tmp_path / "s.csv", ""), {"mean foreground": 0.0, "lesion": 0.0}
    arms = tuple(SHARES)[::-1]
    made = Benchmark("toy", False, False, arms, (0,), 1, subjects, floor, 3, 3, 0, {}, scores, (), (None, 4))
    return replace(made, num_training_subjects=12).compare([(f"{SYNTHETIC}_x2", "real+classical")])


@pytest.mark.slow
def test_curves_hold_the_means_of_the_table_in_order_of_the_dose(bench, tmp_path):
    labels, shares = dose_curves(bench)
    assert list(labels.lines) == list(bench.arms) and [x for x, _ in labels.lines["real+classical"]] == [4.0, 12.0]
    points = shares.lines[SYNTHETIC]
    assert [dose for dose, _ in points] == [0.0, 0.5, 2.0]
    for (_, interval), arm in zip(points, SHARES, strict=True):
        assert interval == bench.mean(arm, "mean foreground", "dice", None)
    write_report(bench, [], tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.sources) == 2 + 2 and "over synthetic volumes per real one" in page.text


def test_a_benchmark_with_one_dose_has_no_curve(bench):
    assert dose_curves(replace(bench, labelled=(None,), arms=("real+classical", f"{SYNTHETIC}_x2"))) != []
    alone = replace(bench, labelled=(None,), arms=("real+classical",), comparisons=())
    assert dose_curves(alone) == []
