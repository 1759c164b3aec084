"""The tests of one comparison, besides its bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.evaluation.significance import (
    crossed_interval,
    crossed_p,
    detectable_difference,
    holm,
    rank_biserial,
    subject_means,
    wilcoxon_p,
)


@dataclass(frozen=True)
class Inference:
    """Tests of a difference between two arms, on the same test cases and training seeds.

    Attributes:
        p_wilcoxon: p-value of Wilcoxon's signed-rank test on the means of subjects.
        p_holm: the same, adjusted for the number of comparisons between arms by this metric and structure.
        p_crossed: p-value of a test that treats training seeds as a sample; verdicts use it.
        crossed_low, crossed_high: 95% interval from the same model as `p_crossed`.
        effect_size: rank-biserial correlation, -1..1.
        detectable: smallest mean difference that a test on these subjects would find with a power of 80%.
        margin: the largest loss that was declared not to matter; None: none was declared for this metric.
        no_worse: whether a loss as large as the margin is excluded (one-sided, at 2.5%).
        equivalent: whether a difference as large as the margin is excluded in both directions, at 5% each.
    """

    p_wilcoxon: float
    p_holm: float
    p_crossed: float
    crossed_low: float
    crossed_high: float
    effect_size: float
    detectable: float
    margin: float | None = None
    no_worse: bool | None = None
    equivalent: bool | None = None

    def cells(self) -> list[float | bool | None]:
        """Values in the order of `COLUMNS`."""
        return [getattr(self, name) for name in COLUMNS]

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Inference | None:
        """Read the cells from a row of a CSV file; None if an earlier version wrote the file.

        Raises:
            ValueError: a cell is not a number.
        """
        if not row.get(COLUMNS[0]):
            return None
        numbers: dict[str, Any] = {name: float(row[name] or "nan") for name in COLUMNS[:7]}
        flags: dict[str, Any] = {
            name: row[name] == "True" if row[name] else None for name in ("no_worse", "equivalent")
        }
        return cls(**numbers, margin=float(row["margin"]) if row["margin"] else None, **flags)


COLUMNS = tuple(field.name for field in fields(Inference))


def infer(
    differences: NDArray[np.floating], subjects: Sequence[str], higher_is_better: bool, margin: float | None
) -> Inference:
    """Test the differences between two arms; `p_holm` is not adjusted yet (see `adjust`).

    Args:
        differences: arm minus baseline, (num_seeds, num_cases).
        subjects: the subject of each case.
        higher_is_better: whether higher values of the metric are better.
        margin: the largest loss that was declared not to matter; None: none was declared.
    """
    table = subject_means(differences, subjects)
    means = table.mean(0)
    p, (low, high) = wilcoxon_p(means), crossed_interval(table)
    found = Inference(p, p, crossed_p(table), low, high, rank_biserial(means), detectable_difference(means))
    if margin is None:
        return found
    narrow_low, narrow_high = crossed_interval(table, 0.9)
    return replace(
        found,
        margin=margin,
        no_worse=bool(low > -margin if higher_is_better else high < margin),
        equivalent=bool(-margin < narrow_low and narrow_high < margin),
    )


def adjust(found: Sequence[Inference]) -> list[Inference]:
    """The same inferences, with `p_holm` adjusted for their number."""
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p_wilcoxon for one in found]), strict=True)]
