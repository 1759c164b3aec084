"""A new metric is one entry and one function, and appears in scores.csv, comparison.csv, console and report."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from pages import Page, toy_benchmark
from rich.console import Console

from medaug.comparison.job import Job
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.evaluation.scores import MEAN_FOREGROUND, METRICS, Metric
from medaug.reporting.console import print_table, print_verdicts
from medaug.reporting.report import write_report


def volume_error(prediction, truth, spacing):
    """Difference of volumes, ml."""
    return abs(int(prediction.sum()) - int(truth.sum())) * float(np.prod(spacing)) / 1000


@pytest.fixture
def added(monkeypatch):
    entry = Metric("Volume error", "ml", 1, False, "difference of volumes", volume_error)
    monkeypatch.setitem(METRICS.own, "volume_error", lambda: entry)


def test_a_new_metric_appears_everywhere(added, tmp_path):
    folder = tmp_path / "benchmark"
    found = toy_benchmark(folder).compare([("good", "bad")])
    found.save(folder)
    scores = pd.read_csv(folder / "scores.csv")
    assert (scores[(scores.metric == "volume_error") & (scores.arm == "bad")].value == 5.0).all()
    rows = pd.read_csv(folder / "comparison.csv").set_index(["class", "metric"])
    assert rows.loc[("lesion", "volume_error")].mean_difference == pytest.approx(-4.0)
    assert rows.loc[("lesion", "volume_error")].verdict == "gain"  # lower is better
    write_report(found, tmp_path, folder / "report.html")
    page = Page((folder / "report.html").read_text())
    header, *lines = page.tables["arm-table"]
    assert header == ["arm", "class", "Dice", "HD95 (mm)", "Volume error (ml)"]
    assert lines[1][-1] == "5.0 [5.0, 5.0]" and lines[3][-1] == "1.0 [1.0, 1.0]"
    text = " ".join(page.text.split())
    assert "Volume error: lower is better." in text and "difference of volumes" in text
    assert ["good", "bad", "lesion", "Volume error", "-4.0 [-4.0, -4.0] ml", "gain"] in page.tables["comparison-table"]
    console = Console(file=io.StringIO(), width=120)
    print_table(found, console)
    print_verdicts(found, console)
    printed = console.file.getvalue()
    assert "Volume error (ml)" in printed and "5.0 [5.0, 5.0]" in printed
    assert "mean foreground Volume error: -4.0 [-4.0, -4.0] ml, gain (7 subjects, 1 seed)" in printed


def test_a_signed_metric_is_better_the_nearer_it_is_to_0(tmp_path, monkeypatch):
    """Predictions are too small: by 1 ml in the good arm, by 5 ml in the bad one."""

    def signed(prediction, truth, spacing):
        return (int(prediction.sum()) - int(truth.sum())) * float(np.prod(spacing)) / 1000

    entry = Metric("Volume difference", "ml", 1, None, "volume of the prediction minus that of the truth", signed)
    monkeypatch.setitem(METRICS.own, "volume_difference", lambda: entry)
    found = toy_benchmark(tmp_path).compare([("good", "bad")])
    assert found.mean("bad", "lesion", "volume_difference").mean == pytest.approx(-5.0)
    found.save(tmp_path)
    rows = pd.read_csv(tmp_path / "comparison.csv").set_index(["class", "metric"])
    row = rows.loc[("lesion", "volume_difference")]
    assert row.mean_difference == pytest.approx(-4.0) and row.verdict == "gain"  # |-1| - |-5|
    write_report(found, tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "Volume difference: nearer to 0 is better, so arms are compared by absolute values." in " ".join(
        page.text.split()
    )
    assert [page.tables["arm-table"][row][-1] for row in (2, 4)] == ["-5.0 [-5.0, -5.0]", "-1.0 [-1.0, -1.0]"]


def test_absolute_values_are_taken_before_structures_are_averaged(tmp_path):
    job = Job("real", 0)
    values = {(job, "case", "core", "volume"): 3.0, (job, "case", "rim", "volume"): -1.0}
    scores = Scores(values, ("core", "rim"), tmp_path, "")
    assert scores.table([job], ["case"], MEAN_FOREGROUND, "volume") == 1.0
    assert scores.table([job], ["case"], MEAN_FOREGROUND, "volume", absolute=True) == 2.0


def test_results_come_back_from_their_files(tmp_path):
    found = toy_benchmark(tmp_path).compare([("good", "bad")])
    found.save(tmp_path)
    again = Benchmark.load(tmp_path)
    assert again.scores.values == found.scores.values and again.comparisons == found.comparisons
    assert {**vars(again), "scores": None} == {**vars(found), "scores": None}


def test_a_run_from_before_a_metric_is_read_without_it(tmp_path, monkeypatch):
    toy_benchmark(tmp_path).compare([("good", "bad")]).save(tmp_path)
    entry = Metric("Volume error", "ml", 1, False, "difference of volumes", volume_error)
    monkeypatch.setitem(METRICS.own, "volume_error", lambda: entry)
    assert Benchmark.load(tmp_path).scores.metrics == ["dice", "hd95"]


def test_a_metric_of_a_package_that_is_gone_is_left_out(added, tmp_path, monkeypatch):
    toy_benchmark(tmp_path).compare([("good", "bad")]).save(tmp_path)
    monkeypatch.delitem(METRICS.own, "volume_error")
    again = Benchmark.load(tmp_path)
    assert again.scores.metrics == ["dice", "hd95"] and len(again.comparisons) == 6
    write_report(again, tmp_path, tmp_path / "report.html")  # its comparisons are shown under their plain name
    assert "volume_error" in (tmp_path / "report.html").read_text()
