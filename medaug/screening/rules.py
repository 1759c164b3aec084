"""The interface of screening rules; the table of rules is in `medaug.screening.table`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.geometry import filled
from medaug.data.preprocessing import BACKGROUND
from medaug.options import ScreenOptions

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Sample:
    """A pair, or a labelled real scan, in model space.

    Attributes:
        image: (M, X, Y, Z) in [-1, 1]; -1 outside `inside`.
        mask: (X, Y, Z) class indices or IGNORE.
        inside: the part of the grid that lies in the (host) scan; the rest is padding.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    inside: Box

    @classmethod
    def of_pair(cls, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]) -> Sample:
        """A synthetic image (M, X, Y, Z) with its mask (X, Y, Z); voxels outside the host's grid become background."""
        box = inside(host)
        kept = np.full_like(image, BACKGROUND)
        kept[:, *box] = image[:, *box]
        return cls(kept, mask, box)

    @classmethod
    def of_case(cls, case: ModelCase) -> Sample:
        """A labelled real scan."""
        return cls(np.asarray(case.image), np.asarray(case.label), inside(case))


def inside(case: ModelCase) -> Box:
    """The part of the model's grid that lies in a scan."""
    x, y, z = (filled(scan, model) for scan, model in zip(case.placement.resampled, case.image.shape[1:], strict=True))
    return x, y, z


@dataclass(frozen=True)
class Check:
    """One comparison of a figure with its threshold.

    Attributes:
        name: what was measured, such as "Dice of Anterior".
        figure: the value; NaN never passes.
        threshold: fitted on real scans.
        at_least: True: the figure must be at least the threshold. False: at most.
        about: further information, such as the nearest training scan; empty: none.
    """

    name: str
    figure: float
    threshold: float
    at_least: bool
    about: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is within its threshold."""
        return self.figure >= self.threshold if self.at_least else self.figure <= self.threshold

    def to_mapping(self) -> dict[str, Any]:
        """Figure, threshold and verdict as JSON values; a figure that is not finite becomes null."""
        limit = "at_least" if self.at_least else "at_most"
        figure = self.figure if math.isfinite(self.figure) else None
        return {"figure": figure, limit: self.threshold, "passed": self.passed} | (
            {"about": self.about} if self.about else {}
        )


@dataclass(frozen=True)
class Reference:
    """The real scans that rules are fitted on, in model space, and the segmenter that was trained on them.

    Attributes:
        schema: the labels.
        train: the training scans of the generator, with and without labels.
        val: the validation scans, likewise.
        net: the screening segmenter; None if no rule needs it.
        lesions: structures that consist of separate lesions.
    """

    schema: LabelSchema
    train: Sequence[ModelCase]
    val: Sequence[ModelCase]
    net: nn.Module | None = None
    lesions: Sequence[str] = ()

    @property
    def labelled(self) -> list[ModelCase]:
        """The training scans that have a label."""
        return [case for case in self.train if case.label is not None]

    @property
    def labelled_val(self) -> list[ModelCase]:
        """The validation scans that have a label."""
        return [case for case in self.val if case.label is not None]


Judge = Callable[[Sample], list[Check]]
"""A fitted rule. A pair passes if it passes all checks."""

Verdicts = Mapping[str, Sequence[Check]]
"""The checks of a pair, by the name of the rule that made them."""


@dataclass(frozen=True)
class Rule:
    """An entry of the table of screening rules.

    Attributes:
        title: name of the rule in tables and reports.
        note: what the rule rejects, for the report.
        fit: measures the thresholds on real scans, with the `screen` options, and returns the judge. If it cannot, it
            raises a UserError that names the rule and a remedy.
        needs_segmenter: whether the rule uses `Reference.net`.
        in_order: False: each pair is judged by itself, when it is made. True: the pairs are judged in the order of
            their numbers, after all have been made; the judge may remember the pairs that have passed.
    """

    title: str
    note: str
    fit: Callable[[Reference, ScreenOptions], Judge]
    needs_segmenter: bool = False
    in_order: bool = False


def passed(verdicts: Verdicts) -> bool:
    """Whether a pair passes every check of every rule."""
    return all(check.passed for checks in verdicts.values() for check in checks)


def verdicts_to_mapping(verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    """Verdicts as JSON values, by rule and check."""
    return {rule: {check.name: check.to_mapping() for check in checks} for rule, checks in verdicts.items()}
