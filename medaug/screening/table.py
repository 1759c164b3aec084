"""The table of screening rules."""

from __future__ import annotations

from medaug.screening.rules import Rule
from medaug.tables import Table

SCREENING_RULES: Table[Rule] = Table("screening_rules", "screening rule", Rule, key="screen.rules")
