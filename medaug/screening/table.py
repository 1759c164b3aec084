"""The table of screening rules."""

from __future__ import annotations

from medaug.screening.rules import Rule
from medaug.tables import Table

SCREENING_RULES: Table[Rule] = Table("screening_rules", "screening rule", Rule, key="screen.rules")


def rule_words(name: str) -> tuple[str, str]:
    """Title and note of a rule; if the package that adds it is no longer installed, its name and an empty note."""
    if name not in SCREENING_RULES:
        return name, ""
    rule = SCREENING_RULES[name]
    return rule.title, rule.note
