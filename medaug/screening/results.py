"""What the screening of a run did, as a type that is saved to `screening.json` and read from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medaug.files import write_json
from medaug.inputs import parsing, read_json

FILE = "screening.json"
REMEDY = "remove the folder and generate again"


@dataclass(frozen=True)
class RuleResult:
    """What one rule did.

    Attributes:
        judged: number of attempts that the rule judged; for a rule that compares pairs with each other, the number of
            finished pairs.
        rejected: how many of them it rejected. Several rules may reject the same attempt.
        checks: rejections by check.
    """

    judged: int = 0
    rejected: int = 0
    checks: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share that it rejected, 0..1."""
        return self.rejected / self.judged if self.judged else 0.0


@dataclass(frozen=True)
class ScreeningResult:
    """What the screening of a run did.

    Attributes:
        requested: number of pairs that were requested.
        kept: number of pairs in the manifest.
        attempts: number of images that were judged.
        passed: how many of them passed all rules that judge a pair by itself.
        given_up: numbers of the pairs that were given up, because `screen.retries` allows no further attempt.
        rules: what each rule did, by name.
        set_verdicts: verdicts of the rules that compare pairs with each other, by the name of the pair.
        removed: names of the pairs that those rules removed.
    """

    requested: int
    kept: int
    attempts: int
    passed: int
    given_up: Sequence[int]
    rules: Mapping[str, RuleResult]
    set_verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    removed: Sequence[str] = ()

    @property
    def pass_rate(self) -> float:
        """Share of the attempts that passed, 0..1."""
        return self.passed / self.attempts if self.attempts else 0.0

    def save(self, folder: Path) -> Path:
        """Write `screening.json`; returns its path."""
        write_json(folder / FILE, {**asdict(self), "pass_rate": self.pass_rate})
        return folder / FILE

    @classmethod
    def load(cls, folder: Path) -> ScreeningResult | None:
        """Read what `save` wrote; None if the pairs were not screened.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / FILE
        if not os.path.lexists(path):
            return None
        stored = read_json(path, REMEDY)
        with parsing(path, REMEDY):
            numbers = {key: int(stored[key]) for key in ("requested", "kept", "attempts", "passed")}
            rules = {
                name: RuleResult(int(rule["judged"]), int(rule["rejected"]), dict(rule["checks"]))
                for name, rule in stored["rules"].items()
            }
            given_up, removed = [int(i) for i in stored["given_up"]], [str(name) for name in stored["removed"]]
            return cls(
                **numbers, given_up=given_up, rules=rules, set_verdicts=dict(stored["set_verdicts"]), removed=removed
            )


def count_verdicts(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, RuleResult]:
    """Count verdicts by rule and check.

    Args:
        verdicts: verdicts as provenance records hold them.
    """
    judged: dict[str, int] = {}
    rejected: dict[str, int] = {}
    checks: dict[str, dict[str, int]] = {}
    for one in verdicts:
        for rule, found in one.items():
            failed = [name for name, check in found.items() if not check["passed"]]
            judged[rule] = judged.get(rule, 0) + 1
            rejected[rule] = rejected.get(rule, 0) + bool(failed)
            for name in found:
                counts = checks.setdefault(rule, {})
                counts[name] = counts.get(name, 0) + (name in failed)
    return {rule: RuleResult(number, rejected[rule], checks[rule]) for rule, number in judged.items()}
