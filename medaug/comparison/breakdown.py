"""The primary comparison in groups of test scans: by attribute, by size of the foreground, and by difficulty.

Groups show where a difference comes from. They are small and many, so no group has a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.comparison.results import Benchmark
from medaug.csv_files import write_csv
from medaug.data.cases import ModelCase
from medaug.evaluation.scores import METRICS
from medaug.evaluation.statistics import Interval, paired_comparison

FEWEST_CASES = 6
"""Least number of test scans that are divided into thirds."""
MOST_GROUPS = 12
"""A text attribute with more distinct values, such as a date, is left out."""
SIZE, DIFFICULTY = "size of the foreground", "difficulty"
_COLUMNS = (
    *("by", "group", "arm", "baseline", "class", "metric"),
    *("mean", "mean_baseline", "mean_difference", "low", "high", "num_cases", "num_subjects"),
)
_ORDER = (
    *("smallest third", "lowest third", "hardest third", "middle third"),
    *("largest third", "highest third", "easiest third"),
)


@dataclass(frozen=True)
class Group:
    """The primary comparison on some of the test scans.

    Attributes:
        by: what the scans are grouped by.
        name: name of the group.
        num_cases: number of test scans in the group.
        mean, mean_baseline: mean scores of arm and baseline.
        difference: arm minus baseline, with its interval; absolute values are compared if the metric has a sign.
    """

    by: str
    name: str
    num_cases: int
    mean: float
    mean_baseline: float
    difference: Interval


def thirds(values: Sequence[float], names: tuple[str, str, str]) -> list[str]:
    """The name of the third in which each value lies, by rank; equal values keep their order."""
    ranks = np.empty(len(values), int)
    ranks[np.argsort(np.asarray(values, float), kind="stable")] = np.arange(len(values))
    return [names[3 * int(rank) // len(values)] for rank in ranks]


def case_groups(cases: Sequence[ModelCase], spacing: tuple[float, float, float] | None) -> dict[str, dict[str, str]]:
    """The groups of test scans that need no score: for each way to group, the group of each case.

    Scans are grouped by the values of each text attribute, by thirds of each numeric attribute, and by thirds of the
    size of the foreground (volume of all foreground classes in model space). A way that gives only one group is left
    out.

    Args:
        cases: the test scans, with labels.
        spacing: voxel size of the model space in mm; None: that of each scan.
    """
    names = [case.case.name for case in cases]
    found: dict[str, dict[str, str]] = {}
    for attribute in sorted({name for case in cases for name in case.case.attributes}):
        values = [case.case.attributes.get(attribute) for case in cases]
        known = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
        numbers = [value for _, value in known if not isinstance(value, str)]
        if numbers:
            if len(numbers) >= FEWEST_CASES:
                split = thirds(numbers, ("lowest third", "middle third", "highest third"))
                found[attribute] = dict(zip((name for name, _ in known), split, strict=True))
        elif len({value for _, value in known}) <= MOST_GROUPS:
            found[attribute] = {name: str(value) for name, value in known}
    if len(cases) >= FEWEST_CASES:
        sides = [spacing or np.linalg.norm(case.affine[:3, :3], axis=0) for case in cases]
        volumes = [
            float(np.count_nonzero(np.asarray(case.label)) * np.prod(side))
            for case, side in zip(cases, sides, strict=True)
        ]
        found[SIZE] = dict(
            zip(names, thirds(volumes, ("smallest third", "middle third", "largest third")), strict=True)
        )
    return {by: groups for by, groups in found.items() if len(set(groups.values())) > 1}


def break_down(benchmark: Benchmark) -> list[Group]:
    """The primary comparison in every group; no group if there is no primary comparison.

    Difficulty is the mean score over all arms, seeds and draws, which treats arm and baseline alike. If only the
    baseline's score counted, the arm would seem to help scans on which the baseline was unlucky.
    """
    primary = benchmark.primary
    if primary is None:
        return []
    metric = METRICS[primary.metric]

    def scores(arm: str) -> NDArray[np.float64]:
        return benchmark.table(arm, primary.structure, primary.metric, primary.labelled, metric.is_signed)

    arm, baseline = scores(primary.arm), scores(primary.baseline)
    cases, subjects = list(benchmark.subjects), list(benchmark.subjects.values())
    groups: dict[str, Mapping[str, str]] = dict(benchmark.groups)
    if len(cases) >= FEWEST_CASES:
        ease = np.mean([scores(name).mean(axis=0) for name in benchmark.arms], axis=0)
        names = ("hardest third", "middle third", "easiest third")
        groups[DIFFICULTY] = dict(zip(cases, thirds(ease if metric.higher_is_better else -ease, names), strict=True))
    found = []
    for by, group_of in groups.items():
        for name in sorted(
            set(group_of.values()), key=lambda name: (_ORDER.index(name) if name in _ORDER else -1, name)
        ):
            places = [i for i, case in enumerate(cases) if group_of.get(case) == name]
            one, other, who = arm[:, places], baseline[:, places], [subjects[i] for i in places]
            difference = paired_comparison(one, other, who, benchmark.bootstrap_seed)
            found.append(Group(by, name, len(places), float(one.mean()), float(other.mean()), difference))
    return found


def save_groups(path: Path, benchmark: Benchmark, groups: Sequence[Group]) -> Path:
    """Write breakdown.csv, one group per row; returns its path.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    primary, rows = benchmark.primary, []
    for one in groups if primary is not None else ():
        assert primary is not None
        what = (primary.arm, primary.baseline, primary.structure, primary.metric)
        numbers = (one.mean, one.mean_baseline, one.difference.mean, one.difference.low, one.difference.high)
        rows.append((one.by, one.name, *what, *numbers, one.num_cases, one.difference.clusters))
    write_csv(path, _COLUMNS, rows)
    return path
