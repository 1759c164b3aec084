"""Bootstrap intervals over subjects and training seeds, and the verdicts that follow from them.

The intervals are percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), widened
for few subjects: the variance of a resampled mean of k values is too small by a factor (k - 1) / k, and its quantiles
are not Student's. So the tails are cut at Phi(-sqrt(k / (k - 1)) t), where t is Student's quantile with k - 1 degrees
of freedom (Hesterberg, The American Statistician 69(4), 2015). Scans of one subject are not independent, so whole
subjects are resampled; training seeds are resampled independently of subjects (the pigeonhole bootstrap of crossed
factors: Owen, Annals of Applied Statistics 1(2), 2007).

Limitation: the variance due to training seeds is underestimated, by a third with three seeds, and is not included at
all with one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

FEWEST_SUBJECTS = 6
"""With fewer subjects even unanimity cannot reach p < 0.05 in a two-sided sign test: 2 / 2^5 > 0.05."""

TOO_FEW = "too few subjects for a verdict"
NOT_LEARNED = "no verdict: neither arm is better than a trivial baseline"


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, over `n` cases of `clusters` subjects.

    `low` and `high` are NaN if there is only one subject, because its scores do not show the spread between subjects.
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
    """Mean of values (n,) with an interval from resampling whole clusters (subjects).

    Raises:
        ValueError: the values are empty or not finite, or the numbers of values and clusters differ.
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
    """Mean of a - b over the same cases and training seeds, with an interval over both.

    The module's docstring says what is underestimated with few seeds.

    Args:
        a: scores (num_seeds, num_cases).
        b: scores of the baseline for the same seeds and cases.
        clusters: subject of each case.
        seed: seed of the resampling.
        num_resamples: number of bootstrap samples.
        level: nominal coverage of the interval.

    Raises:
        ValueError: the tables have different shapes, are empty or not finite.
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

    The module's docstring says what is underestimated with few seeds.

    Raises:
        ValueError: the table is empty or not finite, or the numbers of columns and clusters differ.
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or table.shape[1] != len(clusters):
        raise ValueError(f"a table of shape {table.shape} does not fit {len(clusters)} cluster names")
    if not np.isfinite(table).all():
        raise ValueError("the table contains NaN or infinite values")
    num_rows, num_cases = table.shape
    _, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sizes = np.bincount(member)
    sums = np.stack([np.bincount(member, weights=row) for row in table])
    mean = float(table.mean())
    if len(sizes) == 1:
        return Interval(mean, float("nan"), float("nan"), num_cases, 1)
    rng = np.random.default_rng(seed)
    # A resampled mean depends only on how often each row and each cluster occurs in the resample.
    rows = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_resamples)
    columns = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=num_resamples)
    means = ((rows @ sums) * columns).sum(1) / (num_rows * (columns @ sizes))
    tail = expanded_tail(level, len(sizes))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), num_cases, len(sizes))


def expanded_tail(level: float, clusters: int) -> float:
    """The probability to cut off on each side of the bootstrap distribution of a mean over `clusters` subjects."""
    student = t.ppf((1 + level) / 2, clusters - 1)
    return float(norm.cdf(-np.sqrt(clusters / (clusters - 1)) * student))


def verdict(interval: Interval, higher_is_better: bool, learned: bool = True) -> str:
    """The verdict on a difference, from its interval.

    Args:
        interval: interval of the difference.
        higher_is_better: whether higher values of the metric are better.
        learned: whether at least one of the two compared arms is better than the trivial baseline.

    Returns:
        `TOO_FEW` with fewer than `FEWEST_SUBJECTS` subjects, `NOT_LEARNED` if neither arm has learned anything;
        otherwise "gain" or "harm" if the interval excludes zero, and "no evidence of a difference" if it contains zero.
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
