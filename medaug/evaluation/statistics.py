"""Intervals by bootstrap over whole subjects and training seeds, and what they allow one to say.

Percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), expanded for few
subjects: a resampled mean of k values has a variance too small by (k - 1) / k and no Student quantile, so the tails are
taken at Phi(-sqrt(k / (k - 1)) t), t being Student's quantile with k - 1 degrees of freedom (Hesterberg, The American
Statistician 69(4), 2015). Scans of one subject are not independent, so subjects are resampled, never scans; training
seeds are resampled independently of subjects (the pigeonhole bootstrap of crossed factors: Owen, Annals of Applied
Statistics 1(2), 2007).

Caveat: the variance due to training seeds is understated, by a third with three seeds, and not counted at all with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

FEWEST_SUBJECTS = 6
"""Below, not even agreement of all would reach 5% in a two-sided sign test: 2 / 2^5 > 0.05."""

TOO_FEW = "too few subjects for a verdict"
NOT_LEARNED = "no verdict: neither arm is better than a trivial baseline"


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, over `n` cases of `clusters` subjects.

    `low` and `high` are NaN when one subject is all there is: no spread between subjects can be seen.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def bootstrap_mean(
    values: NDArray[np.floating],
    clusters: Sequence[str],
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean of values (n,) with an interval that resamples whole clusters (subjects).

    See the module's caveat on few clusters.

    Raises:
        ValueError: empty or non-finite values, or not one cluster per value.
    """
    return bootstrap_table(np.asarray(values)[None], clusters, seed, num_resamples, level)


def paired_comparison(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    clusters: Sequence[str],
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean of a - b over the same cases and training seeds, with a two-level interval.

    See the module's caveat on few clusters and seeds.

    Args:
        a: scores (num_seeds, num_cases).
        b: scores of the baseline, same rows and columns.
        clusters: the subject of each case.
        seed: of the resampling.
        num_resamples: bootstrap samples.
        level: coverage aimed at.

    Raises:
        ValueError: tables of different shape, empty or non-finite.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"tables of different shape cannot be paired: {np.shape(a)} and {np.shape(b)}")
    return bootstrap_table(np.asarray(a) - np.asarray(b), clusters, seed, num_resamples, level)


def bootstrap_table(
    table: NDArray[np.floating],
    clusters: Sequence[str],
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean of a table (num_seeds, num_cases); rows and clusters of columns are resampled independently.

    See the module's caveat on few clusters and seeds.

    Raises:
        ValueError: an empty or non-finite table, or not one cluster per column.
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or table.shape[1] != len(clusters):
        raise ValueError(f"a table of shape {table.shape} does not fit {len(clusters)} cluster names")
    if not np.isfinite(table).all():
        raise ValueError("the table holds NaN or infinite values")
    num_rows, num_cases = table.shape
    _, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sizes = np.bincount(member)
    sums = np.stack([np.bincount(member, weights=row) for row in table])
    mean = float(table.mean())
    if len(sizes) == 1:
        return Interval(mean, float("nan"), float("nan"), num_cases, 1)
    rng = np.random.default_rng(seed)
    # How often each row and each cluster is drawn is all that a resampled mean needs to know.
    rows = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_resamples)
    columns = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=num_resamples)
    means = ((rows @ sums) * columns).sum(1) / (num_rows * (columns @ sizes))
    tail = expanded_tail(level, len(sizes))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), num_cases, len(sizes))


def expanded_tail(level: float, clusters: int) -> float:
    """Probability to cut off on each side of a bootstrap distribution of means over `clusters` subjects."""
    student = t.ppf((1 + level) / 2, clusters - 1)
    return float(norm.cdf(-np.sqrt(clusters / (clusters - 1)) * student))


def verdict(interval: Interval, higher_is_better: bool, learned: bool = True) -> str:
    """What an interval of a difference says.

    Args:
        interval: of the difference.
        higher_is_better: of the metric.
        learned: whether any of the two that are compared is better than a trivial baseline.

    Returns:
        `TOO_FEW` below `FEWEST_SUBJECTS` subjects, `NOT_LEARNED` where nothing was learned; else "gain" or "harm" where
        the interval leaves out zero, and "no evidence of a difference" where it holds zero.
    """
    if interval.clusters < FEWEST_SUBJECTS:
        return TOO_FEW
    if not learned:
        return NOT_LEARNED
    if interval.low > 0:
        return "gain" if higher_is_better else "harm"
    if interval.high < 0:
        return "harm" if higher_is_better else "gain"
    return "no evidence of a difference"
