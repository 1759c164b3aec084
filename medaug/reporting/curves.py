"""Curves of the score over a dose: the number of labelled subjects, or synthetic volumes per real one."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.comparison.arms import ARMS
from medaug.comparison.results import Benchmark
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.evaluation.statistics import Interval


@dataclass(frozen=True)
class Curves:
    """Curves over one dose, in the metric of the primary comparison.

    Attributes:
        dose: what is on the horizontal axis.
        lines: points (dose, mean with its interval) of each arm, or of one kind of arm, in ascending order.
    """

    dose: str
    lines: dict[str, list[tuple[float, Interval]]]


def dose_curves(benchmark: Benchmark) -> list[Curves]:
    """The curves that a benchmark has: over labels with at least two numbers of them, over shares with two ratios."""
    primary = benchmark.primary
    metric = "dice" if primary is None else primary.metric
    structure = MEAN_FOREGROUND if primary is None else primary.structure

    def mean(arm: str, labelled: int | None) -> Interval:
        return benchmark.mean(arm, structure, metric, labelled)

    found = []
    every = benchmark.num_training_subjects
    sizes = {num if num is not None else every: num for num in benchmark.labelled}
    counts = sorted(size for size in sizes if size is not None)
    if len(counts) > 1:
        lines = {arm: [(float(size), mean(arm, sizes[size])) for size in counts] for arm in benchmark.arms}
        found.append(Curves("labelled training subjects", lines))
    labelled = sizes[counts[-1]] if counts else benchmark.labelled[-1]
    ratios: dict[str, list[tuple[float, Interval]]] = {}
    for arm in benchmark.arms:
        if arm not in ARMS:  # of a package that is no longer installed
            continue
        entry = ARMS[arm]
        if entry.ratio is not None:
            line = ratios.setdefault(arm.rsplit("_x", 1)[0], [])
            if not line and entry.baseline in benchmark.arms:
                line.append((0.0, mean(entry.baseline, labelled)))
            line.append((entry.ratio, mean(arm, labelled)))
    lines = {name: sorted(line, key=lambda point: point[0]) for name, line in ratios.items() if len(line) > 1}
    if lines:
        found.append(Curves("synthetic volumes per real one (0: the baseline)", lines))
    return found
