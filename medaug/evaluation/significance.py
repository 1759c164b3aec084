"""Statistics of paired differences besides the bootstrap interval: tests, effect size and detectable difference.

The unit is the subject: its difference is the mean over its scans, because scans of one subject are not independent.
Wilcoxon's test, the effect size and the detectable difference also average over training seeds, so their conclusions
hold for the networks that were trained. Those of `crossed_interval` and `crossed_p` hold for networks trained with
other seeds, too.
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
    """Two-sided p-value of Wilcoxon's signed-rank test (Biometrics Bulletin 1(6), 1945); 1 if all differences are zero.

    Differences of zero are dropped. The distribution is exact for up to 50 subjects without ties.

    Args:
        differences: one difference per subject, (num_subjects,).
    """
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences, method="auto").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scandinavian Journal of Statistics 6(2), 1979), in the same order.

    If every hypothesis with an adjusted p-value of at most 0.05 is rejected, the probability of any false rejection is
    at most 5%.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def rank_biserial(differences: NDArray[np.floating]) -> float:
    """Effect size of Wilcoxon's test: the positive share of the rank sum minus the negative share.

    1: all subjects gain; -1: all lose; 0: gains and losses balance, or all differences are zero (Kerby, Comprehensive
    Psychology 3, 2014).
    """
    nonzero = differences[differences != 0]
    if not nonzero.size:
        return 0.0
    ranks = rankdata(np.abs(nonzero))
    return float((ranks * np.sign(nonzero)).sum() / ranks.sum())


def detectable_difference(differences: NDArray[np.floating], power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean difference that a two-sided paired t test on as many subjects would find with this power.

    It is computed from the spread of the observed differences, not from their mean, so it says how sensitive the test
    set is. NaN for fewer than three subjects.
    """
    num = len(differences)
    if num < 3:
        return math.nan
    return _noncentrality(num, power, alpha) * float(np.std(differences, ddof=1)) / math.sqrt(num)


@cache
def _noncentrality(num: int, power: float, alpha: float) -> float:
    """True mean, in standard errors, that a two-sided paired t test on `num` subjects finds with this power."""
    critical = float(t.ppf(1 - alpha / 2, num - 1))
    # A significant result in the wrong direction is too improbable to count.
    return float(brentq(lambda true: nct.sf(critical, num - 1, true) - power, 0.0, 3 * critical))


def crossed_interval(table: NDArray[np.floating], level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean difference that treats both subjects and training seeds as samples from larger populations.

    It is based on an analysis of variance of a table with one value per seed and subject. The variance of the table's
    mean is (MS_subjects + MS_seeds - MS_residual) / (S K), with Satterthwaite's degrees of freedom (Searle, Casella,
    McCulloch, Variance Components, 1992). A component whose mean square does not exceed the residual's is left out;
    otherwise three seeds would allow no conclusion even if they agree. NaN for a single subject.

    Args:
        table: differences (num_seeds, num_subjects).
        level: nominal coverage.
    """
    error, freedom = _error_of_mean(table)
    half = float(t.ppf((1 + level) / 2, freedom)) * error if error else error
    mean = float(np.mean(table))
    return mean - half, mean + half


def crossed_p(table: NDArray[np.floating]) -> float:
    """Two-sided p-value for a true mean difference of 0, from the same model as `crossed_interval`."""
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
