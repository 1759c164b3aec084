"""Groups of test scans against pandas, and a breakdown in which a gain comes from small lesions alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pages import Page, toy_benchmark

from medaug.cohort.manifest import Case
from medaug.comparison.breakdown import DIFFICULTY, SIZE, break_down, case_groups, save_groups, thirds
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.evaluation.statistics import paired_comparison
from medaug.reporting.report import write_report


def case(name, voxels, side=1.0, **attributes):
    label = np.zeros((4, 4, 4), np.uint8)
    label.reshape(-1)[:voxels] = 1
    made = Case(name, ("a.nii.gz",), "b.nii.gz", name, "test", attributes)
    return SimpleNamespace(case=made, label=label, affine=np.diag([side, side, side, 1]))


def test_scans_are_grouped_by_attributes_and_by_size():
    sides = [1, 1, 1, 1, 1, 1, 3]
    cases = [case(f"c{i}", 10 - i, sides[i], site="AB"[i % 2], age=float(i), scanner="one") for i in range(7)]
    cases[3] = case("c3", 7, age=3.0)
    found = case_groups(cases, None)
    assert found["site"] == {f"c{i}": "AB"[i % 2] for i in range(7) if i != 3}  # c3 has no site
    assert set(found) == {"site", "age", SIZE}, "one group is no group"
    assert found[SIZE]["c6"] == "largest third" and case_groups(cases, (1, 1, 1))[SIZE]["c6"] == "smallest third"
    assert set(case_groups(cases[:5], None)) == {"site"}
    values = np.random.default_rng(0).normal(size=9)
    expected = pd.qcut(values, 3, labels=list("abc"))
    assert thirds(values, ("a", "b", "c")) == list(expected)


@pytest.fixture
def bench(tmp_path) -> Benchmark:
    """`good` gains on the scans of site A and not on those of site B."""
    toy = toy_benchmark(tmp_path)
    values = {}
    for (job, name, structure, metric), value in toy.scores.values.items():
        at_a = int(name[1]) < 4
        values[job, name, structure, metric] = (
            value if job.arm == "bad" or at_a else toy.scores.values[replace(job, arm="bad"), name, structure, metric]
        )
    scores = Scores(values, toy.scores.structures, toy.scores.source, "")
    site = {f"c{i}": "A" if i < 4 else "B" for i in range(7)}
    return replace(toy, scores=scores, groups={"site": site}).compare([("good", "bad")])


@pytest.mark.slow
def test_the_groups_show_where_a_gain_comes_from(bench, tmp_path):
    groups = break_down(bench)
    at_a, at_b = (one for one in groups if one.by == "site")
    assert at_a.difference.mean > 0.2 and (at_b.difference.mean, at_b.num_cases) == (0, 3)
    assert [one.name for one in groups if one.by == DIFFICULTY] == ["hardest third", "middle third", "easiest third"]
    one, other = bench.table("good", "mean foreground", "dice"), bench.table("bad", "mean foreground", "dice")
    expected = paired_comparison(one[:, :4], other[:, :4], [f"s{i}" for i in range(4)], 0)
    assert at_a.difference == expected
    rows = pd.read_csv(save_groups(tmp_path / "breakdown.csv", bench, groups))
    assert list(rows["mean"]) == [one.mean for one in groups] and set(rows.arm) == {"good"}
    bench.save(tmp_path)
    write_report(Benchmark.load(tmp_path), [], tmp_path, tmp_path / "report.html", break_down(Benchmark.load(tmp_path)))
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.tables["group-table"]) == 1 + len(groups) and "none has a verdict" in page.text
    assert "with one voxel" not in page.text and "Small structures score lower" in page.text


def test_without_a_comparison_there_is_nothing_to_break_down(tmp_path):
    lone = toy_benchmark(tmp_path)
    assert break_down(lone) == []
    assert save_groups(tmp_path / "b.csv", lone, []).read_text().count("\n") == 1
