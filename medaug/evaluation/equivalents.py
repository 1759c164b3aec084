"""Label equivalents: how many labelled subjects would be needed to reach a score without the synthetic pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.evaluation.statistics import Resamples, expanded_tail


@dataclass(frozen=True)
class LabelEquivalent:
    """A number of labelled subjects with its interval.

    0 means fewer than the smallest number of the curve, infinity more than the largest. `low` and `high` are NaN if
    there is only one test subject.
    """

    value: float
    low: float
    high: float


def label_equivalent(
    counts: Sequence[int],
    curve: Sequence[NDArray[np.floating]],
    target: NDArray[np.floating],
    clusters: Sequence[str],
    seed: int,
    *,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> LabelEquivalent:
    """The number of labelled subjects at which a curve of scores reaches the score of another arm.

    Every bootstrap resample uses the same subjects and seeds for the whole curve and for the target, so the interval
    includes the uncertainty of both, and variation that they share cancels.

    Args:
        counts: numbers of labelled subjects, ascending, at least two.
        curve: for each number, the scores of the arm without synthetic pairs, (num_runs, num_cases); higher is better.
        target: the scores of the other arm, with the same rows and columns.
        clusters: the subject of each case.
        seed: seed of the resampling.
        num_resamples: number of bootstrap samples.
        level: nominal coverage of the interval.

    Raises:
        ValueError: the counts do not ascend, there is not one table for each, or the tables differ in shape.
    """
    if len(counts) < 2 or len(counts) != len(curve) or any(a >= b for a, b in zip(counts, counts[1:], strict=False)):
        raise ValueError(f"a curve over at least two ascending numbers of labelled subjects is needed, not {counts}")
    if any(np.shape(table) != np.shape(target) for table in curve):
        raise ValueError("the tables of the curve and of the target differ in shape")
    resamples = Resamples.sample(np.shape(target), clusters, seed, num_resamples)
    value = float(invert_curve(counts, np.array([[table.mean()] for table in curve]), np.array([target.mean()]))[0])
    if resamples.num_clusters == 1:
        return LabelEquivalent(value, float("nan"), float("nan"))
    found = invert_curve(counts, np.stack([resamples.means(table) for table in curve]), resamples.means(target))
    tail = expanded_tail(level, resamples.num_clusters)
    # Do not interpolate between resamples, because some may be infinite.
    low, high = np.quantile(found, tail, method="lower"), np.quantile(found, 1 - tail, method="higher")
    return LabelEquivalent(value, float(low), float(high))


def invert_curve(
    counts: Sequence[int], curve: NDArray[np.floating], target: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The number of labelled subjects at which a curve reaches a score, for each of several resamples.

    The curve is made non-decreasing by isotonic regression and interpolated linearly in the logarithm of the number.
    If the curve is flat at the target, the smallest number is returned.

    Args:
        counts: numbers of labelled subjects, ascending, (num_counts,).
        curve: scores, (num_counts, num_resamples).
        target: score to reach, (num_resamples,).

    Returns:
        (num_resamples,); 0 if the target is below the curve, infinity if it is above.
    """
    monotone, logs = isotonic(curve), np.log(np.asarray(counts, np.float64))
    found = np.where(target > monotone[-1], np.inf, 0.0)
    for k in range(len(counts) - 1, 0, -1):
        below, above = monotone[k - 1], monotone[k]
        inside = (target >= below) & (target <= above)
        share = np.divide(target - below, above - below, out=np.zeros_like(target), where=inside & (above > below))
        found = np.where(inside, np.exp(logs[k - 1] + share * (logs[k] - logs[k - 1])), found)
    return found


def isotonic(curve: NDArray[np.floating]) -> NDArray[np.float64]:
    """The non-decreasing curve with the least squared distance, for each column of (num_points, num_curves).

    It is computed by the max-min formula: point k is the maximum over i <= k of the minimum over j >= k of the mean of
    points i to j (Robertson, Wright, Dykstra, Order Restricted Statistical Inference, 1988).
    """
    num = len(curve)
    mean = {(i, j): np.mean(curve[i : j + 1], axis=0) for i in range(num) for j in range(i, num)}
    return np.stack(
        [
            np.max([np.min([mean[i, j] for j in range(k, num)], axis=0) for i in range(k + 1)], axis=0)
            for k in range(num)
        ]
    )
