"""A new metric is one entry and one function; it appears in scores.csv, comparison.csv, report and console."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pages import Page, toy_benchmark
from rich.console import Console

from medaug.comparison.job import Job
from medaug.comparison.primary import Declared, Primary
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.evaluation.scores import MEAN_FOREGROUND, METRICS, Metric
from medaug.reporting.console import print_table, print_verdicts
from medaug.reporting.report import write_report

MEASURED = ("dice", "hd95", "nsd", "volume_error")


def missed_volume(prediction, truth, spacing):
    """Difference of volumes, ml."""
    return abs(int(prediction.sum()) - int(truth.sum())) * float(np.prod(spacing)) / 1000


@pytest.fixture
def added(monkeypatch):
    entry = Metric("Missed volume", "ml", 1, False, "difference of volumes", missed_volume)
    monkeypatch.setitem(METRICS.own, "missed", lambda: entry)


@pytest.mark.slow
def test_a_new_metric_appears_everywhere(added, tmp_path):
    folder = tmp_path / "benchmark"
    found = toy_benchmark(folder).compare([("good", "bad")])
    found.save(folder)
    scores = pd.read_csv(folder / "scores.csv")
    assert (scores[(scores.metric == "missed") & (scores.arm == "bad")].value == 5.0).all()
    rows = pd.read_csv(folder / "comparison.csv").set_index(["class", "metric"])
    assert rows.loc[("lesion", "missed")].mean_difference == pytest.approx(-4.0)
    assert rows.loc[("lesion", "missed")].verdict == "gain"  # lower is better
    write_report(found, [], tmp_path, folder / "report.html")
    page = Page((folder / "report.html").read_text())
    assert page.tables["arm-table"][0] == ["arm", "class", "Dice", "HD95 (mm)", "NSD"]
    header, *lines = page.tables["arm-table2"]
    assert header == ["arm", "class", "Volume error (%)", "Missed volume (ml)"]
    assert lines[1][-1] == "5.0 [5.0, 5.0]" and lines[3][-1] == "1.0 [1.0, 1.0]"
    text = " ".join(page.text.split())
    assert "Missed volume: lower is better." in text and "difference of volumes" in text
    row = ["lesion", "Missed volume", "-4.0 [-4.0, -4.0] ml", "0.016", "0.0", "gain"]  # 2 / 2^7: all seven gain
    assert row in page.tables["comparison-table"]
    console = Console(file=io.StringIO(), width=120)
    asked = replace(found, declared=(Declared(Primary("good", "bad", "missed", "lesion"), 0),))
    print_table(asked, console)
    print_verdicts(asked, [], console)
    printed = console.file.getvalue()
    assert "Missed volume (ml)" in printed and "5.0 [5.0, 5.0]" in printed and "-4.0 [-4.0, -4.0]" in printed
    assert "Gain: lesion Missed volume is lower by 4.0 ml with good than with bad." in printed
    assert "HD95" not in printed


@pytest.mark.slow
def test_nearer_to_0_is_better_for_a_signed_metric(tmp_path, monkeypatch):
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
    write_report(found, [], tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "Volume difference: nearer to 0 is better, so arms are compared by absolute values." in " ".join(
        page.text.split()
    )
    assert [page.tables["arm-table2"][row][-1] for row in (2, 4)] == ["-5.0 [-5.0, -5.0]", "-1.0 [-1.0, -1.0]"]


def test_absolute_values_are_taken_before_structures_are_averaged(tmp_path):
    job = Job("real", 0)
    values = {(job, "case", "core", "volume"): 3.0, (job, "case", "rim", "volume"): -1.0}
    scores = Scores(values, ("core", "rim"), tmp_path, "")
    assert scores.table([job], ["case"], MEAN_FOREGROUND, "volume") == 1.0
    assert scores.table([job], ["case"], MEAN_FOREGROUND, "volume", absolute=True) == 2.0


@pytest.mark.slow
def test_results_come_back_from_their_files(tmp_path):
    found = toy_benchmark(tmp_path).compare([("good", "bad")])
    found.save(tmp_path)
    again = Benchmark.load(tmp_path)
    assert again.scores.values == found.scores.values and again.comparisons == found.comparisons
    assert {**vars(again), "scores": None} == {**vars(found), "scores": None}


@pytest.mark.slow
def test_a_run_that_is_older_than_a_metric_is_read_without_it(tmp_path, monkeypatch):
    toy_benchmark(tmp_path).compare([("good", "bad")]).save(tmp_path)
    entry = Metric("Missed volume", "ml", 1, False, "difference of volumes", missed_volume)
    monkeypatch.setitem(METRICS.own, "missed", lambda: entry)
    assert Benchmark.load(tmp_path).scores.metrics == list(MEASURED)


@pytest.mark.slow
def test_a_metric_of_a_package_that_is_gone_is_left_out(added, tmp_path, monkeypatch):
    toy_benchmark(tmp_path).compare([("good", "bad")]).save(tmp_path)
    monkeypatch.delitem(METRICS.own, "missed")
    again = Benchmark.load(tmp_path)
    assert again.scores.metrics == list(MEASURED) and len(again.comparisons) == 10
    write_report(again, [], tmp_path, tmp_path / "report.html")  # its comparisons are shown under their plain name
    assert "missed" in (tmp_path / "report.html").read_text()


def test_a_metric_that_only_some_jobs_or_structures_have(tmp_path):
    """Jobs of an earlier version have fewer metrics; lesions are counted in some structures only."""
    plain = {(Job(arm, 0), "a", name, "dice"): 0.5 for arm in ("x", "y") for name in ("one", "two")}
    old = Scores(plain | {(Job("x", 0), "a", "one", "nsd"): 0.5}, ("one", "two"), tmp_path, "")
    assert old.metrics == ["dice"]
    lesions = {(Job(arm, 0), "a", "two", "lesion_f1"): 0.25 for arm in ("x", "y")}
    some = Scores(plain | lesions, ("one", "two"), tmp_path, "")
    assert some.metrics == ["dice", "lesion_f1"] and not some.measures("one", "lesion_f1")
    assert some.table([Job("x", 0)], ["a"], MEAN_FOREGROUND, "lesion_f1") == 0.25
