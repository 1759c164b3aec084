"""Problems of an image's values: on their own, with the configured window, and compared with the cohort."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.findings import Finding
from medaug.imaging.intensity import Intensity, scale
from medaug.imaging.volume import is_finite

MIN_CASES = 10
"""With fewer scans than this, it is unknown what is usual."""

_LEAST_HOUNSFIELD = 20  # smallest range of values, of a scan or a window, that can be in Hounsfield units
_QUANTILES = (2, 10, 25, 50, 75, 90, 98)
# Measured on 199 hippocampus crops (percentile): the largest mean distance from the medians is 0.28, the largest root
# mean square distance 6.2 spreads, and textures are 0.7 to 1.15 times the median's. Phantoms: 0.26, 2.5, 0.7 to 1.3.
_FAR, _FAR_SPREADS, _SPREAD_FLOOR = 0.42, 6.0, 0.05
_TEXTURE_RATIO = 3.0
# Two modalities are swapped if they fit each other's medians 2.5 times better than their own, and their own badly.
_SWAP_RATIO, _SWAP_FAR = 2.5, 0.16


def check_values(case: str, name: str, array: NDArray[Any]) -> Iterator[Finding]:
    """Find NaN or infinite values, and volumes with a single value."""
    if not is_finite(array):
        count = int(array.size - np.count_nonzero(np.abs(array) <= np.finfo(np.float32).max))
        what = f"{name} holds NaN or infinite values ({count} of {array.size} voxels)"
        yield Finding(case, "error", "not-finite", what, "replace them, or leave the case out")
    elif array.min() == array.max():
        what = f"{name} is constant (every voxel is {array.flat[0]:g})"
        yield Finding(case, "error", "constant", what, "export the image again, or leave the case out")


def check_window(
    case: str, name: str, modality: str, array: NDArray[Any], window: tuple[float, float]
) -> Iterator[Finding]:
    """Find a scan whose values do not fit the window; at most one finding.

    If the modality is called CT, or the window begins below 0 and is wide enough for CT, values should be Hounsfield
    units: air -1000, water 0, bone up to 2000. A narrower window is meant for normalised values.
    """
    lowest, highest = float(array.min()), float(array.max())
    low, high = (float(value) for value in np.percentile(array, (1, 99)))
    values = f"{name} has values from {lowest:g} to {highest:g}"
    code = "ct-not-hounsfield"
    if (window[0] < 0 and window[1] - window[0] >= _LEAST_HOUNSFIELD) or re.search(r"\bCT\b", modality, re.IGNORECASE):
        if highest - lowest < _LEAST_HOUNSFIELD:
            remedy = "give the scan in Hounsfield units: it seems to be normalised already"
            yield Finding(case, "error", code, f"{values}, too narrow a range for Hounsfield units", remedy)
            return
        if high > 5000:
            remedy = "give the scan in Hounsfield units: it seems to be multiplied by a factor"
            yield Finding(case, "error", code, f"{values}, too high for Hounsfield units", remedy)
            return
        if low < -4000:
            remedy = "set what lies outside the scanner's circle to -1024"
            yield Finding(case, "warning", code, f"{values}: the lowest are not Hounsfield units", remedy)
            return
        if lowest >= 0:
            remedy = "add the rescale intercept (usually -1024), which does not seem to be applied"
            yield Finding(case, "warning", code, f"{values}, none below 0, although air is -1000", remedy)
            return
        if lowest > -200:
            remedy = "make sure that the values are Hounsfield units and that the crop holds neither air nor fat"
            yield Finding(case, "warning", code, f"{values}, none below -200, although air is -1000", remedy)
            return
    if np.mean((array > window[0]) & (array < window[1])) < 0.01:
        what = f"{values}, 99% of them outside the window {window[0]:g} to {window[1]:g}"
        yield Finding(case, "error", "outside-window", what, "set data.window to the units of the scans")


def profile(array: NDArray[Any], foreground: NDArray[np.bool_], intensity: Intensity) -> NDArray[np.float32]:
    """Summarise the values of a scan after normalisation.

    Args:
        array: (X, Y, Z), finite and not constant.
        foreground: (X, Y, Z), at least one voxel.
        intensity: the configured normalisation.

    Returns:
        (8,): seven quantiles of the foreground, in [-1, 1], and its texture: mean absolute difference of neighbours
        divided by mean absolute deviation, which is 1.4 for noise and below 1 for anatomy.
    """
    scaled = scale(array, *intensity.limits(array, foreground))
    values = scaled[foreground]
    deviation = float(np.abs(values - values.mean()).mean())
    steps = [
        np.abs(np.diff(scaled, axis=axis))[np.delete(foreground, 0, axis)].mean()
        for axis in range(3)
        if array.shape[axis] > 1 and np.delete(foreground, 0, axis).any()
    ]
    texture = np.mean(steps) / max(deviation, 1e-6) if steps else 0.0
    return np.array([*np.percentile(values, _QUANTILES), texture], np.float32)


def find_outliers(
    cases: Sequence[str], modalities: Sequence[str], profiles: Sequence[Sequence[NDArray[Any] | None]]
) -> Iterator[Finding]:
    """Find scans unlike the others of their modality, and modalities that are swapped, by their `profile`.

    A scan is an outlier if it is three times as rough or as smooth as usual, or if its quantiles are far from the
    cohort's medians: their distance must exceed a number of robust spreads (median absolute deviation, at least 0.05),
    and the product of distance and number of spreads must exceed a threshold. Modalities with fewer than `MIN_CASES`
    scans are not checked.

    Args:
        cases: N names.
        modalities: M names.
        profiles: N times M, or N times 0 if the case could not be read.
    """
    table = np.full((len(cases), len(modalities), len(_QUANTILES) + 1), np.nan)
    for row, found in enumerate(profiles):
        for column, values in enumerate(found):
            if values is not None:
                table[row, column] = values
    present = np.isfinite(table[..., 0])
    checked = present.sum(0) >= MIN_CASES
    if not checked.any():
        return
    medians = np.stack(
        [np.median(table[present[:, m], m], axis=0) if checked[m] else table[0, m] for m in range(len(modalities))]
    )
    for row, case in enumerate(cases):
        swapped = _find_swap(table[row, :, :-1], medians[:, :-1], checked & present[row])
        if swapped:
            names = " and ".join(modalities[m] for m in swapped)
            what = f"{names} seem to be swapped: each looks like the other one of the rest of the cohort"
            yield Finding(case, "warning", "modalities-swapped", what, "look at both, and swap the files if needed")
        for column, modality in enumerate(modalities):
            if column in swapped or not (checked[column] and present[row, column]):
                continue
            others = table[present[:, column], column]
            if reason := _outlier_reason(table[row, column], medians[column], others):
                what = f"{modality} is unlike the cohort's after normalisation: {reason}"
                remedy = "look at the scan: another sequence or unit, inverted contrast, metal, noise or the wrong file"
                yield Finding(case, "warning", "unlike-cohort", what, remedy)


def _outlier_reason(values: NDArray[Any], median: NDArray[Any], others: NDArray[Any]) -> str:
    """Return why a profile (8,) is unlike the others (N, 8), whose median is (8,); "" if it is not."""
    texture, usual = values[-1], median[-1]
    if texture > _TEXTURE_RATIO * usual or texture < usual / _TEXTURE_RATIO:
        return f"it is {'rougher' if texture > usual else 'smoother'} ({texture:.2g} against {usual:.2g})"
    away = np.abs(values - median)[:-1]
    spread = np.maximum(1.4826 * np.median(np.abs(others - median), axis=0)[:-1], _SPREAD_FLOOR)
    spreads = np.sqrt(np.mean((away / spread) ** 2))
    if spreads > _FAR_SPREADS and away.mean() * spreads > _FAR * _FAR_SPREADS:
        shown = ", ".join(f"{v:.2f}" for v in values[:-1][1::2])
        expected = ", ".join(f"{v:.2f}" for v in median[:-1][1::2])
        return f"its 10th, 50th and 90th percentiles are {shown}, but {expected} are usual (range -1 to 1)"
    return ""


def _find_swap(values: NDArray[Any], medians: NDArray[Any], checked: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the two of M modalities that fit each other's medians (M, 7) much better than their own, or ()."""
    best = _SWAP_RATIO
    pair: tuple[int, ...] = ()
    for a, b in combinations(np.flatnonzero(checked), 2):
        own = np.abs(values[a] - medians[a]).mean() + np.abs(values[b] - medians[b]).mean()
        crossed = np.abs(values[a] - medians[b]).mean() + np.abs(values[b] - medians[a]).mean()
        if own > _SWAP_FAR and own > best * crossed:
            best, pair = own / max(crossed, 1e-6), (int(a), int(b))
    return pair
