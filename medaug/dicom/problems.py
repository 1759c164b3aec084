"""Why a series is not a volume, and which of its files could be left out to make it one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from medaug.dicom.instance import Instance
from medaug.dicom.keywords import ATTRIBUTES

EXPORT = "export the series again from its archive"
_MOST_KEYWORDS = 3


@dataclass(frozen=True)
class Problem:
    """Why a series is not a volume, in words without a path or patient data.

    Attributes:
        code: the kind, in words with hyphens; `on_gap="resample"` solves "gap".
        what: a phrase that follows "series 12: ".
        remedy: what the user can do.
        severity: "warning": the series can be read, but should be checked.
    """

    code: str
    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


def minority(instances: Sequence[Instance], kind: Callable[[Instance], Hashable]) -> list[Instance]:
    """Return the instances that are not of the most frequent kind."""
    kinds = [kind(one) for one in instances]
    (usual, _), *_ = Counter(kinds).most_common(1)
    return [one for one, its_kind in zip(instances, kinds, strict=True) if its_kind != usual]


def leave_out(instances: Sequence[Instance], odd: Sequence[Instance], otherwise: str) -> str:
    """Return the remedy for a series with some files that do not belong to it.

    Args:
        instances: all instances of the series, one per file or per slice.
        odd: the instances that do not fit the rest.
        otherwise: what else the user can do.
    """
    files = {one.path: one for one in instances}
    out = {one.path: one for one in odd}
    rest = [one for path, one in files.items() if path not in out]
    distinctive = [
        keyword
        for keyword in ATTRIBUTES
        if {one.attributes.get(keyword) for one in out.values()}.isdisjoint(one.attributes.get(keyword) for one in rest)
    ]
    if not out or not rest or not distinctive:
        return otherwise
    by = " or ".join(distinctive[:_MOST_KEYWORDS])
    option = f"exclude_series=[{distinctive[0]}:PATTERN]"
    return f"leave {len(out)} of its {len(files)} files out by {by} ({option}), or {otherwise}"
