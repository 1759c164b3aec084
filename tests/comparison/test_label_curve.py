"""Label equivalents of a benchmark: scores that follow a known curve, with and without draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medaug.comparison.job import Job
from medaug.comparison.label_curve import label_equivalents
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.reporting.console import print_verdicts
from medaug.reporting.report import write_report

SUBJECTS = {f"c{i}": f"s{i}" for i in range(8)}
ARMS = ("real", "real+classical")


def benchmark(folder: Path, worth: float, labelled=(4, 8, None), draws=(0, 1), noise: float = 0.0) -> Benchmark:
    """Dice is 0.1 log2(labelled subjects) for one arm; the other has the Dice of `worth` times as many subjects."""
    rng = np.random.default_rng(0)
    values = {
        (Job(arm, seed, labelled=num, draw=draw), case, "lesion", "dice"): 0.1 * math.log2((num or 32) * factor)
        + rng.normal(0, noise)
        for arm, factor in zip(ARMS, (1.0, worth), strict=True)
        for num in labelled
        for draw in (draws if num is not None else (None,))
        for seed in (0, 1)
        for case in SUBJECTS
    }
    scores = Scores(values, ("lesion",), folder / "scores.csv", "")
    made = Benchmark(
        "toy", False, False, ARMS, (0, 1), 1, SUBJECTS, {"mean foreground": 0.0, "lesion": 0.0}, 40, 3, 0, {}, scores,
        labelled=labelled, draws=draws, num_training_subjects=32,
    )  # fmt: skip
    return made.compare([("real+classical", "real")])


@pytest.mark.slow
@pytest.mark.parametrize("draws", [(0,), (0, 1)])
def test_an_arm_that_doubles_the_labels_is_worth_twice_as_many(tmp_path, draws):
    found = label_equivalents(benchmark(tmp_path, 2.0, draws=draws))
    assert [(one.arm, one.baseline, one.labelled) for one in found] == [
        ("real+classical", "real", n) for n in (4, 8, 32)
    ]
    for one, expected in zip(found[:2], (8.0, 16.0), strict=True):
        worth = one.equivalent
        assert (worth.value, worth.low, worth.high) == pytest.approx((expected,) * 3)
    assert found[2].equivalent.value == math.inf and (found[2].fewest, found[2].most) == (4, 32)


def test_the_interval_is_wide_if_scores_are_noisy_and_holds_the_truth(tmp_path):
    worth = label_equivalents(benchmark(tmp_path, 2.0, noise=0.05))[0].equivalent
    assert worth.low < 8 < worth.high and worth.high - worth.low > 1


def test_one_number_of_labels_or_an_unknown_one_gives_nothing(tmp_path):
    assert label_equivalents(benchmark(tmp_path, 2.0, labelled=(4,))) == []
    assert label_equivalents(benchmark(tmp_path, 2.0, labelled=(None,))) == []


@pytest.mark.slow
def test_console_report_and_json_show_them(tmp_path):
    folder = tmp_path / "benchmark"
    folder.mkdir()
    benchmark(folder, 2.0).save(folder)
    made = Benchmark.load(folder)
    with (console := Console(width=200)).capture() as printed:
        print_verdicts(made, label_equivalents(made), console)
    line = "real+classical, 4 labelled subjects, is worth 8.0 [8.0, 8.0] labelled subjects of real (mean foreground"
    assert line in printed.get()
    write_report(made, label_equivalents(made), tmp_path, folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "What the labels are worth" in page and "8.0 [8.0, 8.0]" in page and "more than 32" in page
    stored = json.loads((folder / "report.json").read_text())["label_equivalents"]
    assert stored[0]["equivalent"]["value"] == pytest.approx(8) and stored[2]["equivalent"]["value"] is None
    assert stored[2]["text"].startswith("more than 32")
