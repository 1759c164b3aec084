"""Intervals against scipy, closed forms and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medaug.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_table,
    paired_comparison,
    verdict,
)


def _names(n):
    return [f"s{i}" for i in range(n)]


def test_one_case_per_subject_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=40)
    interval = bootstrap_mean(values, _names(40), seed=0)
    # The tails of the expanded interval, from the formula in the paper.
    oracle = stats.bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
        confidence_level=1 - 2 * stats.norm.cdf(-math.sqrt(40 / 39) * stats.t.ppf(0.975, 39)),
    )
    width = interval.high - interval.low
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(oracle.confidence_interval, abs=0.04 * width)
    assert (interval.n, interval.clusters) == (40, 40)


def test_copies_of_a_case_add_no_certainty():
    values = np.random.default_rng(3).normal(size=30)
    once = bootstrap_mean(values, _names(30), seed=4)
    thrice = bootstrap_mean(np.repeat(values, 3), np.repeat(_names(30), 3), seed=4)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.n, thrice.clusters) == (90, 30)
    careless = bootstrap_mean(np.repeat(values, 3), _names(90), seed=4)
    assert careless.high - careless.low < 0.65 * (once.high - once.low)


def test_unequal_clusters_give_the_ratio_of_resampled_sums():
    values, subjects = np.array([1.0, 3.0, 3.0, 8.0]), ["a", "b", "b", "c"]
    interval = bootstrap_mean(values, subjects, seed=0, num_resamples=40_000, level=0.6)
    draws = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)  # all 27 equally likely resamples
    sums, sizes = np.array([1.0, 6.0, 8.0]), np.array([1, 2, 1])
    exact = sums[draws].sum(1) / sizes[draws].sum(1)
    tail = stats.norm.cdf(-math.sqrt(3 / 2) * stats.t.ppf(0.8, 2))
    assert interval.low == pytest.approx(np.quantile(exact, tail, method="inverted_cdf"))
    assert interval.high == pytest.approx(np.quantile(exact, 1 - tail, method="inverted_cdf"))
    assert interval.mean == pytest.approx(values.mean())


def test_the_spread_is_that_of_crossed_resampling():
    """Additive effects: the variance of the resampled mean is var(rows) / S + var(columns) / K, exactly."""
    rng = np.random.default_rng(5)
    rows, columns = rng.normal(0, 0.3, 12), rng.normal(0, 1.0, 60)
    interval = bootstrap_table(rows[:, None] + columns, _names(60), seed=0, num_resamples=40_000)
    sd = math.sqrt(rows.var() / 12 + columns.var() / 60)
    assert interval.high - interval.low == pytest.approx(2 * math.sqrt(60 / 59) * stats.t.ppf(0.975, 59) * sd, rel=0.03)


def test_a_paired_difference_removes_what_arms_have_in_common():
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 5.0, (3, 50))
    interval = paired_comparison(shared + 0.2, shared, _names(50), seed=0)
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.2))


def test_seeds_that_disagree_widen_the_interval():
    zeros = np.zeros((3, 50))
    values = np.random.default_rng(7).normal(0, 0.1, 50)
    agreeing = paired_comparison(np.tile(values, (3, 1)), zeros, _names(50), seed=0)
    disagreeing = paired_comparison(values + np.array([[-0.2], [0.0], [0.2]]), zeros, _names(50), seed=0)
    assert disagreeing.mean == pytest.approx(agreeing.mean)
    assert disagreeing.high - disagreeing.low > 3 * (agreeing.high - agreeing.low)


@pytest.mark.slow
@pytest.mark.parametrize(("subjects", "lowest", "highest"), [(6, 0.92, 0.98), (40, 0.93, 0.97)])
def test_coverage_is_what_the_docstring_says(subjects, lowest, highest):
    rng = np.random.default_rng(8)
    scans = 2
    hits = 0
    for seed in range(1000):
        values = np.repeat(rng.normal(size=subjects), scans)
        interval = bootstrap_mean(values, np.repeat(_names(subjects), scans), seed, num_resamples=1000)
        hits += interval.low <= 0 <= interval.high
    assert lowest < hits / 1000 < highest


def test_the_same_seed_gives_the_same_interval_and_order_does_not_matter():
    values, subjects = np.random.default_rng(9).normal(size=20), np.repeat(_names(10), 2)
    order = np.random.default_rng(10).permutation(20)
    first = bootstrap_mean(values, subjects, seed=1)
    again = bootstrap_mean(values[order], subjects[order], seed=1)
    assert (again.low, again.high) == pytest.approx((first.low, first.high))
    assert bootstrap_mean(values, subjects, seed=2).low != first.low


def test_one_subject_gives_a_mean_but_no_interval_and_no_verdict():
    interval = bootstrap_mean(np.array([0.5, 0.7]), ["a", "a"], seed=0)
    assert interval.mean == pytest.approx(0.6)
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert verdict(interval, higher_is_better=True) == "too few subjects for a verdict"


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "expected"),
    [
        (0.01, 0.02, True, "gain"),
        (-0.02, -0.01, True, "harm"),
        (0.01, 0.02, False, "harm"),
        (-0.02, -0.01, False, "gain"),
        (-0.01, 0.02, True, "no evidence of a difference"),
        (0.0, 0.02, True, "no evidence of a difference"),
        (-0.02, 0.0, False, "no evidence of a difference"),
    ],
)
def test_verdicts(low, high, higher_is_better, expected):
    assert verdict(Interval((low + high) / 2, low, high, 9, 9), higher_is_better) == expected


@pytest.mark.parametrize("low", [-0.2, 0.1, 0.4])
def test_there_is_no_verdict_if_nothing_was_learned(low):
    interval = Interval(low + 0.1, low, low + 0.2, 9, 9)
    expected = "no verdict: neither arm is better than a trivial baseline"
    assert verdict(interval, higher_is_better=True, learned=False) == expected


def test_unanimity_of_five_subjects_gives_no_verdict():
    few = Interval(0.5, 0.4, 0.6, 10, 5)
    assert verdict(few, higher_is_better=True) == verdict(few, False, learned=False) == "too few subjects for a verdict"
    assert verdict(Interval(0.5, 0.4, 0.6, 10, 6), higher_is_better=True) == "gain"


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_mean(np.array([1.0, np.nan]), ["a", "b"], 0)
    with pytest.raises(ValueError, match="cluster names"):
        bootstrap_mean(np.array([1.0]), ["a", "b"], 0)
    with pytest.raises(ValueError, match="paired"):
        paired_comparison(np.zeros((3, 4)), np.zeros((1, 4)), _names(4), 0)
