"""The screen: the chosen rules, fitted, as one object that judges pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medaug.options import ScreenOptions
from medaug.screening.rules import Check, Judge, Reference, Rule, Sample, Verdicts
from medaug.screening.table import SCREENING_RULES


def needs_segmenter(names: Sequence[str]) -> bool:
    """Whether any of these rules reads the screening segmenter."""
    return any(SCREENING_RULES[name].needs_segmenter for name in names)


@dataclass(frozen=True)
class Screen:
    """Fitted rules.

    Attributes:
        judges: fitted rules that judge each pair by itself, by name.
        in_order: rules that judge the pairs in order, by name.
        reference: the real scans that rules are fitted on.
        options: the `screen` options.
    """

    judges: Mapping[str, Judge]
    in_order: Mapping[str, Rule]
    reference: Reference
    options: ScreenOptions

    @classmethod
    def fit(cls, reference: Reference, options: ScreenOptions) -> Screen:
        """Fit the rules that the options name.

        Raises:
            UserError: there are too few scans to fit a rule.
        """
        judges, in_order = {}, {}
        for name in options.rules:
            rule = SCREENING_RULES[name]
            judge = rule.fit(reference, options)  # also for rules that judge in order: one that cannot is refused now
            if rule.in_order:
                in_order[name] = rule
            else:
                judges[name] = judge
        return cls(judges, in_order, reference, options)

    def judge(self, sample: Sample) -> Verdicts:
        """Judge one pair by the rules that need no other pair.

        An image with NaN or infinite voxels fails, and no rule judges it.
        """
        if (share := float(np.isfinite(sample.image).mean())) < 1:
            return {"integrity": [Check("share of finite voxels", share, 1.0, at_least=True)]}
        return {name: judge(sample) for name, judge in self.judges.items()}

    def judge_in_order(self, samples: Iterable[Sample]) -> Iterator[Verdicts]:
        """Judge the pairs of a set in the order of their numbers, by the rules that compare pairs with each other."""
        judges = {name: rule.fit(self.reference, self.options) for name, rule in self.in_order.items()}
        for sample in samples:
            yield {name: judge(sample) for name, judge in judges.items()}
