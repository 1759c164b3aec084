"""The ground floor: cohorts (cases, subjects, splits, labels) and where a synthetic case came from."""

from __future__ import annotations

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema

__all__ = ["Case", "LabelSchema", "Manifest"]
