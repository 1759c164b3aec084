"""Tests and effect sizes against scipy and definitions; label equivalents against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from medaug.comparison.inference import infer
from medaug.evaluation.equivalents import invert_curve, isotonic, label_equivalent
from medaug.evaluation.significance import (
    crossed_interval,
    crossed_p,
    detectable_difference,
    holm,
    rank_biserial,
    subject_means,
    wilcoxon_p,
)
from medaug.evaluation.statistics import Interval, verdict

NAMES = [f"s{i}" for i in range(12)]


def _differences(seed, shape=(3, 12), shift=0.3):
    return np.random.default_rng(seed).normal(shift, 1, shape)


def test_wilcoxons_test_and_its_effect_size_are_those_of_scipy():
    x = _differences(0).mean(0)
    expected = stats.wilcoxon(x)
    assert wilcoxon_p(x) == expected.pvalue
    positive = stats.wilcoxon(x, alternative="greater").statistic  # the sum of the positive ranks
    assert rank_biserial(x) == pytest.approx(2 * positive / (12 * 13 / 2) - 1)
    assert (rank_biserial(np.abs(x)), rank_biserial(-np.abs(x))) == (1, -1)
    assert wilcoxon_p(np.zeros(7)) == 1 and rank_biserial(np.zeros(7)) == 0


def test_holm_is_the_closure_of_bonferroni():
    """The adjusted p-value of a hypothesis is the largest Bonferroni p-value of all intersections that contain it."""
    p = [0.04, 0.01, 0.03, 0.2, 0.01]
    for i, adjusted in enumerate(holm(p)):
        groups = (g for n in range(1, 6) for g in itertools.combinations(range(5), n) if i in g)
        assert adjusted == pytest.approx(max(min(1.0, len(g) * min(p[j] for j in g)) for g in groups))


def test_scans_of_a_subject_are_averaged():
    table = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 0.0]])
    assert subject_means(table, ["b", "b", "a"]).tolist() == [[5.0, 2.0], [0.0, 2.0]]


def test_the_detectable_difference_is_found_in_four_of_five_studies():
    rng = np.random.default_rng(1)
    x = rng.normal(size=15)
    x = (x - x.mean()) / x.std(ddof=1)
    true = detectable_difference(x)
    studies = rng.normal(true, 1, (15, 20_000))
    assert (stats.ttest_1samp(studies, 0).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(3 * x + 7) == pytest.approx(3 * true) and math.isnan(detectable_difference(x[:2]))


def test_with_one_seed_or_seeds_that_agree_the_crossed_test_is_the_t_test():
    x = _differences(2, (1, 12))
    expected = stats.ttest_1samp(x[0], 0)
    low, high = crossed_interval(x, 0.9)
    assert crossed_p(x) == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert crossed_p(np.repeat(x, 3, axis=0)) == pytest.approx(expected.pvalue)
    assert (crossed_p(np.zeros((3, 4))), crossed_p(np.ones((3, 4)))) == (1, 0)
    assert math.isnan(crossed_p(np.ones((3, 1))))


def test_with_subjects_that_agree_the_crossed_test_is_the_t_test_over_seeds():
    seeds = np.array([0.1, 0.5, 0.9])
    expected = stats.ttest_1samp(seeds, 0)
    assert crossed_p(np.repeat(seeds[:, None], 9, axis=1)) == pytest.approx(expected.pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("between_seeds", [0.0, 1.0])
def test_under_the_null_the_crossed_test_errs_as_often_as_it_says(between_seeds):
    """400 of the 2,000 repeats of benchmarks/null_calibration.py; where seeds differ Wilcoxon's test errs too often."""
    rng, errors, ranks = np.random.default_rng(3), 0, 0
    for _ in range(400):
        x = rng.normal(size=10) + between_seeds * rng.normal(size=(3, 1)) + rng.normal(size=(3, 10))
        errors, ranks = errors + (crossed_p(x) < 0.05), ranks + (wilcoxon_p(x.mean(0)) < 0.05)
    assert 0.02 < errors / 400 < 0.08
    assert (ranks / 400 > 0.15) == bool(between_seeds)


def test_a_margin_turns_no_evidence_into_no_worse():
    x = _differences(4, shift=0.0) * 0.01
    found = infer(x, NAMES, True, 0.02)
    assert found.no_worse and found.equivalent and found.p_wilcoxon > 0.05
    assert not infer(x - 0.02, NAMES, True, 0.02).no_worse and infer(x - 0.02, NAMES, False, 0.02).no_worse
    assert not infer(x + 0.02, NAMES, True, 0.02).equivalent and infer(x + 0.02, NAMES, True, 0.02).no_worse
    narrow = Interval(0.0, -0.001, 0.001, 12, 12)
    assert verdict(narrow, True, no_worse=True) == "no worse, within the margin"
    assert verdict(Interval(0.1, 0.05, 0.15, 12, 12), True, p_value=0.2) == "no evidence of a difference"


def test_a_curve_is_inverted_in_the_logarithm_of_the_number():
    counts = (4, 8, 16)
    curve = np.array([[0.6], [0.7], [0.8]])
    for target, number in ((0.6, 4), (0.65, 4 * 2**0.5), (0.7, 8), (0.775, 8 * 2**0.75), (0.8, 16)):
        assert invert_curve(counts, curve, np.array([target])) == pytest.approx(number)
    assert invert_curve(counts, curve, np.array([0.5])) == 0 and invert_curve(counts, curve, np.array([0.9])) == np.inf
    flat = np.array([[0.6], [0.8], [0.8]])
    assert invert_curve(counts, flat, np.array([0.8])) == pytest.approx(8)  # the smallest number that reaches it
    dented = np.array([[0.6], [0.8], [0.7]])  # more labels are no worse: both are 0.75
    assert invert_curve(counts, dented, np.array([0.75])) == pytest.approx(8)


def test_the_isotonic_curve_is_scipys():
    curve = np.random.default_rng(5).normal(size=(6, 20)) + np.arange(6)[:, None] * 0.3
    expected = np.stack([isotonic_regression(column).x for column in curve.T], axis=1)
    assert isotonic(curve) == pytest.approx(expected)


def test_what_curve_and_target_share_cancels_in_label_equivalents():
    """Subjects differ by 100 times the slope of the curve, but in the same way in every arm."""
    shared = np.random.default_rng(6).normal(0, 10, (3, 12))
    curve = [shared + 0.1 * step for step in range(3)]
    exact = label_equivalent((4, 8, 16), curve, shared + 0.15, NAMES, 0, num_resamples=200)
    assert (exact.value, exact.low, exact.high) == pytest.approx((8 * 2**0.5,) * 3)
    noisy = label_equivalent(
        (4, 8, 16), curve, shared + 0.15 + _differences(7, shift=0) * 0.1, NAMES, 0, num_resamples=200
    )
    assert noisy.low < noisy.value < noisy.high
    beyond = label_equivalent((4, 8, 16), curve, shared + 5.0, NAMES, 0, num_resamples=200)
    assert beyond.value == beyond.low == beyond.high == np.inf
    with pytest.raises(ValueError, match="ascending"):
        label_equivalent((8, 4), curve[:2], shared, NAMES, 0)
