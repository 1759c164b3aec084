"""Checks that all slices of a series come from one acquisition, by the acquisition parameters in their headers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from medaug.dicom.keywords import CONSTANT
from medaug.dicom.problems import Problem, leave_out
from medaug.dicom.stack import Slice
from medaug.errors import listed

_EACH = "export each acquisition as its own series"
_SLICES_EACH = 4  # with this many slices per AcquisitionNumber on average, each acquisition may be a stack of its own


def mixture_problems(slices: Sequence[Slice]) -> list[Problem]:
    """Report why slices at distinct positions cannot come from one acquisition."""
    headers = [one.values for one in slices]
    differing: dict[str, list[bool]] = {}
    for keyword, tolerance in CONSTANT.items():
        values = [header.get(keyword, "") for header in headers]
        if len(set(values)) > 1 and any(odd := _unlike_most(values, tolerance)):
            differing[keyword] = odd
    if differing:
        is_odd = np.any(list(differing.values()), axis=0)
        verb = "differs" if len(differing) == 1 else "differ"
        what = f"mixes acquisitions: {_first_three(list(differing))} {verb} in {is_odd.sum()} of {len(slices)} slices"
        return [Problem("two-acquisitions", what, _remedy(slices, is_odd.tolist()))]
    numbers = Counter(header.get("InstanceNumber", "") for header in headers)
    repeated = sum(count for count in numbers.values() if count > 1)
    if len(numbers) > 1 and repeated >= len(slices) / 2:
        what = f"mixes acquisitions: {repeated} of {len(slices)} slices share their InstanceNumber with another one"
        return [Problem("two-acquisitions", what, _EACH)]
    acquisitions = [header.get("AcquisitionNumber", "") for header in headers]
    count = len(set(acquisitions))
    if 1 < count <= len(slices) / _SLICES_EACH:
        what = f"consists of {count} acquisitions (AcquisitionNumber differs)"
        remedy = f"nothing if they belong to one scan; otherwise {_remedy(slices, _unlike_most(acquisitions, 0.0))}"
        return [Problem("two-acquisitions", what, remedy, "warning")]
    return []


def differences(groups: Sequence[Sequence[Slice]]) -> list[str]:
    """Return the keywords in which slices at one position differ, the most frequent first.

    Args:
        groups: the slices of each position.
    """
    differing: Counter[str] = Counter()
    for group in groups:
        values = defaultdict(set)
        for one in group:
            for keyword, value in one.values.items():
                values[keyword].add(value)
        differing.update(keyword for keyword, found in values.items() if len(found) > 1 and keyword != "InstanceNumber")
    return [keyword for keyword, _ in differing.most_common()]


def _remedy(slices: Sequence[Slice], is_odd: Sequence[bool]) -> str:
    odd = [one.instance for one, flag in zip(slices, is_odd, strict=True) if flag]
    return leave_out([one.instance for one in slices], odd, _EACH)


def _unlike_most(values: Sequence[str], tolerance: float) -> list[bool]:
    """Return which values differ from the most frequent one by more than rounding."""
    usual = Counter(values).most_common(1)[0][0]
    return [not _is_close(value, usual, tolerance) for value in values]


def _is_close(value: str, usual: str, tolerance: float) -> bool:
    if value == usual:
        return True
    try:
        numbers, others = (np.array(text.split("\\"), float) for text in (value, usual))
    except ValueError:
        return False
    if numbers.shape != others.shape:
        return False
    largest = max(np.abs(numbers).max(), np.abs(others).max())
    return bool(np.abs(numbers - others).max() <= tolerance * largest)


def _first_three(keywords: Sequence[str]) -> str:
    more = [f"{len(keywords) - 3} more"] if len(keywords) > 3 else []
    return listed([*keywords[:3], *more])
