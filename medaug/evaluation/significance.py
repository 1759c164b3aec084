"""What paired differences say beside their bootstrap interval: tests, effect size, what could have been seen.

The unit is the subject: its difference is the mean over its scans, because scans of one subject are not independent.
Wilcoxon's test, the effect size and the detectable difference also average over training seeds: they speak of the
networks that were trained. `crossed_interval` and `crossed_p` speak of networks trained with any seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import nct, rankdata, t, wilcoxon


def subject_means(table: NDArray[np.floating], clusters: Sequence[str]) -> NDArray[np.float64]:
    """Mean of each subject over its scans, (num_seeds, num_subjects), subjects sorted by name.

    Args:
        table: (num_seeds, num_cases).
        clusters: the subject of each case.
    """
    _, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.stack([np.bincount(member, row) for row in np.asarray(table, np.float64)])
    return np.asarray(sums / np.bincount(member))


def wilcoxon_p(differences: NDArray[np.floating]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test (Biometrics Bulletin 1(6), 1945); 1 where all are zero.

    Differences of zero are dropped. The distribution is exact for up to 50 subjects without ties.

    Args:
        differences: of the subjects, (num_subjects,).
    """
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences, method="auto").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6(2), 1979), in the same order.

    Rejecting where they are at most 0.05 keeps the probability of any false rejection at most 5%.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def rank_biserial(differences: NDArray[np.floating]) -> float:
    """Effect size of Wilcoxon's test, -1..1: share of the rank sum that is positive minus the share that is negative.

    (Kerby, Comprehensive Psychology 3, 2014.) 1: all subjects gain; 0: gains and losses balance, or all are zero.
    """
    nonzero = differences[differences != 0]
    if not nonzero.size:
        return 0.0
    ranks = rankdata(np.abs(nonzero))
    return float((ranks * np.sign(nonzero)).sum() / ranks.sum())


def detectable_difference(differences: NDArray[np.floating], power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean difference that a two-sided paired t test on as many subjects finds with this power.

    From the spread of the observed differences, not from their mean: it says how sensitive the test set is. NaN for
    fewer than three subjects.
    """
    num = len(differences)
    if num < 3:
        return math.nan
    return _noncentrality(num, power, alpha) * float(np.std(differences, ddof=1)) / math.sqrt(num)


@cache
def _noncentrality(num: int, power: float, alpha: float) -> float:
    """True mean in standard errors that a two-sided paired t test on `num` subjects finds with this power."""
    critical = float(t.ppf(1 - alpha / 2, num - 1))
    # A significant result in the wrong direction is too improbable to count.
    return float(brentq(lambda true: nct.sf(critical, num - 1, true) - power, 0.0, 3 * critical))


def crossed_interval(table: NDArray[np.floating], level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of differences that treats both subjects and training seeds as samples of many.

    By analysis of variance of a table with one value per seed and subject: the variance of its mean is
    (MS_subjects + MS_seeds - MS_residual) / (S K), with Satterthwaite's degrees of freedom (Searle, Casella, McCulloch,
    Variance Components, 1992). A component whose mean square is not above the residual's is left out; otherwise three
    seeds would allow no conclusion even where they agree. NaN for a single subject.

    Args:
        table: differences (num_seeds, num_subjects).
        level: coverage aimed at.
    """
    error, freedom = _error_of_mean(table)
    half = float(t.ppf((1 + level) / 2, freedom)) * error if error else error
    mean = float(np.mean(table))
    return mean - half, mean + half


def crossed_p(table: NDArray[np.floating]) -> float:
    """Two-sided p-value of a mean difference of 0, from the same model as `crossed_interval`."""
    error, freedom = _error_of_mean(table)
    mean = float(np.mean(table))
    if not error:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / error, freedom))


def _error_of_mean(table: NDArray[np.floating]) -> tuple[float, float]:
    """Standard error of the mean of a table (num_seeds, num_subjects), and its degrees of freedom."""
    table = np.asarray(table, np.float64)
    seeds, subjects = table.shape
    if subjects < 2:
        return math.nan, math.nan
    of_subjects, of_seeds, mean = table.mean(0), table.mean(1), table.mean()
    by_subject = seeds * float(((of_subjects - mean) ** 2).sum()) / (subjects - 1)
    if seeds == 1:
        return math.sqrt(by_subject / subjects), subjects - 1
    by_seed = subjects * float(((of_seeds - mean) ** 2).sum()) / (seeds - 1)
    rest = float(((table - of_subjects - of_seeds[:, None] + mean) ** 2).sum()) / ((seeds - 1) * (subjects - 1))
    if by_seed <= rest:
        square, freedom = by_subject, float(subjects - 1)
    elif by_subject <= rest:
        square, freedom = by_seed, float(seeds - 1)
    else:
        square = by_subject + by_seed - rest
        parts = (by_subject, subjects - 1), (by_seed, seeds - 1), (rest, (seeds - 1) * (subjects - 1))
        freedom = square**2 / sum(part**2 / count for part, count in parts)
    return math.sqrt(square / table.size), freedom
