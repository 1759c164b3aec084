"""What tests say of one comparison, beside its interval."""

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
        p_wilcoxon: of Wilcoxon's signed-rank test on the means of subjects.
        p_holm: the same, adjusted for the number of pairs of arms that are compared by this metric and structure.
        p_crossed: of a test that treats training seeds as a sample, as verdicts need.
        crossed_low, crossed_high: 95% interval of that model.
        effect_size: rank-biserial correlation, -1..1.
        detectable: smallest mean difference that these subjects show with a power of 80%.
        margin: the declared loss that does not matter; None: none was declared for this metric.
        no_worse: whether a loss of the margin or more is excluded at 2.5%, one-sided.
        equivalent: whether a difference of the margin or more is excluded in both directions, at 5% each.
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
        """Read what `cells` became in a CSV file; None in files of earlier versions.

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
    """Test the differences (num_seeds, num_cases) between two arms; `p_holm` is that of a single comparison.

    Args:
        differences: arm minus baseline.
        subjects: the subject of each case.
        higher_is_better: of the metric.
        margin: the declared loss that does not matter; None: none.
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
    """The same with `p_holm` adjusted for their number."""
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p_wilcoxon for one in found]), strict=True)]
