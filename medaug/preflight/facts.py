"""The facts of one case, and the report that holds those of all with what was found wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding, Severity
from medaug.preflight.twins import Signature


@dataclass(frozen=True)
class VolumeFacts:
    """What tells one volume from another.

    Attributes:
        content: hash of the values in the order RAS+.
        values: hash of the values in ascending order, the same for any flip or turn; "" where few values occur.
        profile: see `intensities.profile`.
    """

    content: str
    values: str
    profile: NDArray[np.float32]


@dataclass(frozen=True)
class CaseFacts:
    """What one pass over the files of a case tells, small enough to keep for every case of a large cohort.

    Whatever could not be read is left at its default; with depth "headers" only the geometry is there.

    Attributes:
        shape: (X, Y, Z) of the first image.
        spacing: its voxel size in mm.
        orientation: its axes, as "RAS".
        classes: names of the classes in the label, background among them; None: unlabelled or unread.
        label_content: hash of the label in the order RAS+; "" without foreground.
        volumes: one per modality, None where it could not be used; empty where their number is wrong.
        signature: `twins.signature` of the first modality.
    """

    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str = ""
    classes: frozenset[str] | None = None
    label_content: str = ""
    volumes: tuple[VolumeFacts | None, ...] = ()
    signature: Signature | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return what a reader of the report wants, as JSON values."""
        classes = None if self.classes is None else sorted(self.classes)
        return {"shape": self.shape, "spacing": self.spacing, "orientation": self.orientation, "classes": classes}


@dataclass(frozen=True)
class Report:
    """What a check found, and the facts of each case by its name."""

    findings: tuple[Finding, ...]
    facts: Mapping[str, CaseFacts] = field(default_factory=dict)

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(finding.severity == severity for finding in self.findings)
