"""Bootstrap intervals over subjects and training seeds, and the verdicts that follow from them.

The intervals are percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), widened
for few subjects, because the variance of a resampled mean of k values is too small by a factor (k - 1) / k, and its
quantiles are not those of Student's t. The tails are therefore cut at Phi(-sqrt(k / (k - 1)) t), where t is Student's
quantile with k - 1 degrees of freedom (Hesterberg, The American Statistician 69(4), 2015). Scans of one subject are not
independent, so whole subjects are resampled; training seeds are resampled independently of subjects (the pigeonhole
bootstrap of crossed factors: Owen, Annals of Applied Statistics 1(2), 2007).

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
NO_EVIDENCE = "no evidence of a difference"
NO_WORSE = "no worse, within the margin"
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

    See the docstring of the module for what few seeds underestimate.

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

    See the docstring of the module for what few seeds underestimate.

    Raises:
        ValueError: the table is empty or not finite, or the numbers of columns and clusters differ.
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or table.shape[1] != len(clusters):
        raise ValueError(f"a table of shape {table.shape} does not fit {len(clusters)} cluster names")
    if not np.isfinite(table).all():
        raise ValueError("the table contains NaN or infinite values")
    mean, num_cases = float(table.mean()), table.shape[1]
    resamples = Resamples.sample(table.shape, clusters, seed, num_resamples)
    if resamples.num_clusters == 1:
        return Interval(mean, float("nan"), float("nan"), num_cases, 1)
    tail = expanded_tail(level, resamples.num_clusters)
    low, high = np.quantile(resamples.means(table), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), num_cases, resamples.num_clusters)


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of the rows (training seeds) and clusters of columns (subjects) of a table.

    A resampled mean depends only on how often each row and each cluster occurs in the resample.

    Attributes:
        member: the cluster of each column, (num_cases,).
        rows: how often each row occurs, (num_resamples, num_rows).
        columns: how often each cluster occurs, (num_resamples, num_clusters).
    """

    member: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def sample(cls, shape: Sequence[int], clusters: Sequence[str], seed: int, num_resamples: int) -> Resamples:
        """Draw resamples for tables of a shape (num_rows, num_cases); the same arguments give the same resamples."""
        _, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        rng, num_rows, num_clusters = np.random.default_rng(seed), shape[0], int(member.max()) + 1
        rows = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_resamples)
        columns = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_resamples)
        return cls(member, rows, columns)

    @property
    def num_clusters(self) -> int:
        """Number of subjects."""
        return self.columns.shape[1]

    def means(self, table: NDArray[np.floating]) -> NDArray[np.float64]:
        """The mean of a table (num_rows, num_cases) in every resample, (num_resamples,)."""
        sizes = np.bincount(self.member)
        sums = np.stack([np.bincount(self.member, weights=row) for row in table])
        return np.asarray(((self.rows @ sums) * self.columns).sum(1) / (len(table) * (self.columns @ sizes)))


def expanded_tail(level: float, clusters: int) -> float:
    """The probability to cut off on each side of the bootstrap distribution of a mean over `clusters` subjects."""
    student = t.ppf((1 + level) / 2, clusters - 1)
    return float(norm.cdf(-np.sqrt(clusters / (clusters - 1)) * student))


def verdict(
    interval: Interval,
    higher_is_better: bool,
    learned: bool = True,
    *,
    p_value: float = 0.0,
    no_worse: bool = False,
) -> str:
    """The verdict on a difference, from its interval and its test.

    Args:
        interval: interval of the difference.
        higher_is_better: whether higher values of the metric are better.
        learned: whether at least one of the two arms is better than the trivial baseline.
        p_value: p-value of a test that treats training seeds as a sample (`significance.crossed_p`). If there are few
            seeds and they disagree, the interval is too narrow, so a claim needs the test as well.
        no_worse: whether a loss as large as the declared margin is excluded.

    Returns:
        `TOO_FEW` with fewer than `FEWEST_SUBJECTS` subjects, `NOT_LEARNED` if neither arm has learned anything;
        otherwise "gain" or "harm" if the interval excludes zero and the p-value is below 5%, `NO_WORSE` if a loss as
        large as the margin is excluded, and `NO_EVIDENCE` otherwise.
    """
    if interval.clusters < FEWEST_SUBJECTS:
        return TOO_FEW
    if not learned:
        return NOT_LEARNED
    if (interval.low > 0 or interval.high < 0) and p_value < 0.05:
        return "gain" if (interval.low > 0) == higher_is_better else "harm"
    return NO_WORSE if no_worse else NO_EVIDENCE
