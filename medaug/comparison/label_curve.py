"""Label equivalents: how many labelled subjects the baseline of an arm would need to reach the arm's scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.comparison.results import Benchmark
from medaug.evaluation.equivalents import LabelEquivalent, label_equivalent
from medaug.evaluation.scores import MEAN_FOREGROUND


@dataclass(frozen=True)
class ArmEquivalent:
    """How many labelled subjects an arm's baseline would need to reach the arm's scores.

    Attributes:
        arm, baseline: names of arms.
        labelled: number of labelled subjects that the arm trained with.
        fewest, most: smallest and largest number of labelled subjects that the baseline was trained with.
        equivalent: number of labelled subjects that the baseline would need, with its interval.
    """

    arm: str
    baseline: str
    labelled: int
    fewest: int
    most: int
    equivalent: LabelEquivalent


def label_equivalents(benchmark: Benchmark) -> list[ArmEquivalent]:
    """The label equivalents of all arms that have a baseline, at each number of labelled subjects.

    The score is mean foreground Dice. The runs are draws, or seeds if there is only one draw. With all labels, every
    draw is the same; if there are several draws, these scores are averaged over seeds, and only test subjects vary.

    Returns:
        An empty list if the benchmark has fewer than two numbers of labelled subjects.
    """
    every = benchmark.num_training_subjects
    sizes = {num if num is not None else every: num for num in benchmark.labelled}
    counts = sorted(size for size in sizes if size is not None)
    if len(counts) < 2:
        return []
    num_runs = max(len(benchmark.table(benchmark.arms[0], MEAN_FOREGROUND, "dice", sizes[size])) for size in counts)

    def scores(arm: str, size: int) -> NDArray[np.float64]:
        table = benchmark.table(arm, MEAN_FOREGROUND, "dice", sizes[size])
        return table if len(table) == num_runs else np.tile(table.mean(axis=0), (num_runs, 1))

    subjects = list(benchmark.subjects.values())
    found = []
    for arm, baseline in dict.fromkeys((one.arm, one.baseline) for one in benchmark.comparisons):
        curve = [scores(baseline, size) for size in counts]
        for size in counts:
            worth = label_equivalent(counts, curve, scores(arm, size), subjects, benchmark.bootstrap_seed)
            found.append(ArmEquivalent(arm, baseline, size, counts[0], counts[-1], worth))
    return found
