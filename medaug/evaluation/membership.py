"""Membership inference: can it be told from the synthetic volumes which scans their generator was trained on?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medaug.evaluation.statistics import Interval, Resamples, expanded_tail

NUM_RESAMPLES = 2_000


def separation(
    members: NDArray[np.floating],
    member_subjects: Sequence[str],
    others: NDArray[np.floating],
    other_subjects: Sequence[str],
    seed: int,
) -> Interval:
    """Area under the ROC curve of an attack that takes the scans with the highest values for members.

    It is the probability that a member has a higher value than another scan; ties count half (Mann & Whitney 1947).
    0.5: members cannot be told from others. Subjects of both groups are resampled for the 95% interval, which has no
    bounds if a group has one subject.

    Args:
        members: value of each scan that the generator was trained on, such as its similarity to the nearest synthetic
            volume.
        member_subjects: their subjects.
        others: values of scans of subjects that it did not see.
        other_subjects: their subjects.
        seed: seed of the resamples.
    """
    wins = (members[:, None] > others[None]) + 0.5 * (members[:, None] == others[None])
    groups = [
        Resamples.sample((1, len(who)), who, seed + i, NUM_RESAMPLES)
        for i, who in enumerate((member_subjects, other_subjects))
    ]
    value, num = float(wins.mean()), len(members) + len(others)
    fewest, total = min(g.num_clusters for g in groups), sum(g.num_clusters for g in groups)
    if fewest < 2:
        return Interval(value, float("nan"), float("nan"), num, total)
    one, other = (group.columns[:, group.member].astype(np.float64) for group in groups)
    values = np.einsum("ri,ij,rj->r", one, wins, other, optimize=True) / (one.sum(1) * other.sum(1))
    tail = expanded_tail(0.95, fewest)
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(value, float(low), float(high), num, total)
