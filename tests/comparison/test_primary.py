"""The primary comparison is declared before the first job; a later change stays visible."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pages import toy_benchmark

from medaug.comparison.primary import declare, primary_of
from medaug.comparison.results import Benchmark
from medaug.errors import UserError
from medaug.options import ArmsOptions, BenchmarkOptions

ARMS = ArmsOptions(names=["bad", "good"])


def _primary(metric="dice", margin=None, **changes):
    words = {"arm": "good", "baseline": "bad", "metric": metric, "structure": "lesion"} | changes
    return primary_of(BenchmarkOptions(primary=list(words.values()), margin=margin), ARMS, ["lesion"])


def test_a_change_after_results_stays_on_record(tmp_path):
    assert declare(tmp_path, None, 0) == () and not list(tmp_path.iterdir())
    first = declare(tmp_path, _primary(), 0)
    assert declare(tmp_path, _primary(), 2) == declare(tmp_path, None, 2) == first  # nothing new is said
    both = declare(tmp_path, _primary("hd95"), 2)
    assert [(one.primary.metric, one.jobs_done) for one in both] == [("dice", 0), ("hd95", 2)]
    content = json.loads((tmp_path / "primary.json").read_text())
    content["declared"][1]["metric"] = "dice"
    (tmp_path / "primary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="primary.json: .*edited"):
        declare(tmp_path, None, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": "x"}, "has no arm x"),
        ({"structure": "liver"}, "has no structure liver"),
        ({"metric": "f1"}, "has no metric f1"),
        ({"baseline": "good"}, "cannot be compared with itself"),
    ],
)
def test_a_question_that_this_benchmark_cannot_answer_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        _primary(**changes)


@pytest.mark.slow
def test_the_primary_comparison_is_the_declared_one_and_has_its_margin(tmp_path):
    found = toy_benchmark(tmp_path).compare([("good", "bad")])
    assert (found.primary.metric, found.primary.structure) == ("dice", "mean foreground")
    declared = declare(tmp_path, _primary("hd95", margin=3.0), 0)
    found = replace(found, declared=declared).compare([("good", "bad")])
    assert (found.primary.metric, found.primary.structure) == ("hd95", "lesion")
    margins = {one.metric: one.tests.margin for one in found.comparisons}
    assert margins["hd95"] == 3.0 and margins["dice"] is None
    found.save(tmp_path)
    again = Benchmark.load(tmp_path)
    assert again.declared == declared and again.comparisons == found.comparisons
