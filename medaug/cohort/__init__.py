"""Cohorts (cases, subjects, splits, labels), and the provenance of synthetic cases."""

from __future__ import annotations

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema

__all__ = ["Case", "LabelSchema", "Manifest"]
