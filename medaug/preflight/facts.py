"""The facts about each case that checks of the whole cohort need, and the report of a check."""

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
    """What identifies a volume.

    Attributes:
        content: hash of the values, with axes in the order RAS+.
        values: hash of the sorted values, which no flip or rotation changes; "" if there are few distinct values.
        profile: see `intensities.profile`.
    """

    content: str
    values: str
    profile: NDArray[np.float32]


@dataclass(frozen=True)
class CaseFacts:
    """Facts from one pass over the files of a case, small enough to keep for every case of a large cohort.

    Facts that could not be read keep their defaults; with depth "headers" there is only the geometry.

    Attributes:
        shape: (X, Y, Z) of the first image.
        spacing: its voxel size in mm.
        orientation: directions of its axes, such as "RAS".
        classes: names of the classes in the label, background included; None: unlabelled or unread.
        label_content: hash of the label, with axes in the order RAS+; "" without foreground.
        volumes: one per modality, None if it is not usable; empty if their number is wrong.
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
        """Return the facts that go into the report, as JSON values."""
        classes = None if self.classes is None else sorted(self.classes)
        return {"shape": self.shape, "spacing": self.spacing, "orientation": self.orientation, "classes": classes}


@dataclass(frozen=True)
class Report:
    """The findings of a check, and the facts of each case by name."""

    findings: tuple[Finding, ...]
    facts: Mapping[str, CaseFacts] = field(default_factory=dict)

    def count(self, severity: Severity) -> int:
        """Return the number of findings with this severity."""
        return sum(finding.severity == severity for finding in self.findings)
