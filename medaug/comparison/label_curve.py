"""What arms are worth in labelled subjects, from the scores of their baselines over numbers of labelled subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.comparison.results import Benchmark
from medaug.evaluation.equivalents import LabelEquivalent, label_equivalent
from medaug.evaluation.scores import MEAN_FOREGROUND


@dataclass(frozen=True)
class ArmEquivalent:
    """How many labelled subjects an arm's baseline needs to score as the arm does.

    Attributes:
        arm, baseline: names of arms.
        labelled: number of labelled subjects of the arm.
        fewest, most: the ends of the baseline's curve.
        equivalent: number of labelled subjects of the baseline, with its interval.
    """

    arm: str
    baseline: str
    labelled: int
    fewest: int
    most: int
    equivalent: LabelEquivalent


def label_equivalents(benchmark: Benchmark) -> list[ArmEquivalent]:
    """The label equivalent of every arm with a baseline, for each number of labelled subjects, in mean foreground Dice.

    The runs are draws, or seeds if there is one draw. All labels are the same in every draw, so with several draws the
    scores with all labels are averaged over seeds, and only the variation between test subjects counts for them.

    Returns:
        Nothing if the benchmark has fewer than two numbers of labelled subjects.
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
