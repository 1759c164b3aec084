"""Finds cases that are likely one subject under two names: a leak that no file name shows.

There are three kinds of evidence:

- **Step.** Scans stored with a scale factor have values that are multiples of one step, which differs from scan to
  scan. Two crops of one scan share it to seven digits, whatever they show.
- **Content.** Coarse images minus the cohort's mean are correlated, at the best shift, and mirrored left to right if
  that fits better. One scan stored twice, or one head registered twice, correlates far more than any two people.
- **Number.** If the pairs found by step and content are numbered 2k-1 and 2k, other such numbers are likely pairs too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy.fft import irfftn, rfftn
from scipy.ndimage import affine_transform, gaussian_filter

from medaug.cohort.findings import Finding, Severity
from medaug.imaging.volume import spacing
from medaug.progress import track

_SIDE = 32  # voxels of the coarse image along each axis
_FINEST, _COARSEST = 0.6, 3.0  # its frequency band, as standard deviations of Gaussians in its voxels
_FEWEST_VALUES = 32  # a step can be determined only if many of its multiples occur
_STEP_TOLERANCE = 1e-6  # relative; float32's relative error is 6e-8
_LEAST_CORRELATION = 0.72
_OUTLIER = 8.0  # robust standard deviations above the correlations of the cohort's pairs
_FEWEST_PAIRS = 3  # fewer do not establish a rule of numbering
_REMEDY = (
    "name their subject with subject_pattern or subjects=FILE.csv; if they are different people, "
    "set subject_pattern='(.*)'"
)
_REMEDY_FOR_PAIRS = (
    "set subject_pattern='(\\d+)$' subject_consecutive=2, or subject_pattern='(.*)' if they are different people"
)


@dataclass(frozen=True)
class Signature:
    """What is stored of a volume to recognise its subject.

    Attributes:
        step: the step of which all values are multiples; 0 if there is none, or if it is a round number that many scans
            share (1, 0.5, 1/255).
        coarse: (32, 32, 32) float32, the volume in RAS order about its centre, clipped at its percentiles 1 and 99,
            band-passed, at a voxel size that is a power of two in mm; 0 beyond its edge.
    """

    step: float
    coarse: NDArray[np.float32]


def signature(array: NDArray[Any], affine: NDArray[np.float64]) -> Signature:
    """Compute the signature of a volume (X, Y, Z) of finite values."""
    orientation = io_orientation(affine)
    oriented = _trimmed(apply_orientation(array, orientation).astype(np.float32))
    sizes = np.asarray(spacing(affine))[np.argsort(orientation[:, 0])]
    # A power of two, so that a crop of a scan is usually sampled like the scan.
    voxel = 2.0 ** np.ceil(np.log2(max(np.array(oriented.shape) * sizes) / _SIDE))
    low, high = np.percentile(oriented, (1, 99))
    clipped = np.clip((oriented - low) / max(high - low, 1e-12), 0, 1)
    step = voxel / sizes
    smooth = gaussian_filter(clipped, _FINEST * step, mode="nearest")
    band = smooth - gaussian_filter(smooth, _COARSEST * step, mode="nearest")
    centre = (np.array(band.shape) - 1) / 2 - (_SIDE - 1) / 2 * step
    coarse = affine_transform(band, step, centre, (_SIDE,) * 3, order=1, mode="constant")
    return Signature(_step(array), coarse.astype(np.float32))


def _trimmed(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Crop borders that only have the lowest value, which are padding."""
    inside = np.argwhere(volume > volume.min())
    if not len(inside):
        return volume
    return volume[tuple(slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True))]


def likely_same_subject(
    names: Sequence[str], subjects: Sequence[str], signatures: Sequence[Signature], severity: Severity = "warning"
) -> list[Finding]:
    """Find pairs of cases that are likely one person although their subjects differ.

    Args:
        names: names of the cases.
        subjects: their subjects; pairs of one subject are not reported, but count as evidence for a rule of numbering.
        signatures: signatures of the first modality of each case.
        severity: severity of the findings.
    """
    evidence = {**_same_content(signatures), **_same_step(signatures)}
    rule = _numbered_in_pairs(names, list(evidence))
    for pair in rule:
        evidence.setdefault(pair, "by their numbers, like the pairs that were found by their values")
    hint = _REMEDY_FOR_PAIRS if rule else _REMEDY
    return [
        Finding(
            names[i], severity, "likely-same-subject", f"likely the same subject as {names[j]}: {evidence[i, j]}", hint
        )
        for i, j in sorted(evidence)
        if subjects[i] != subjects[j]
    ]


def _step(array: NDArray[Any]) -> float:
    """Return the step of which all values, up to a common offset, are multiples; 0 if there is no distinctive one."""
    values = np.unique(array).astype(np.float64)
    if len(values) < _FEWEST_VALUES:
        return 0.0
    gaps = np.diff(values)
    multiples = gaps / gaps.min()
    counts = np.rint(multiples)
    # Neighbouring values are few steps apart, so the counts are right although the smallest gap is inexact.
    if np.abs(multiples - counts).max() > 0.05 * max(1.0, np.median(counts)) or counts.sum() > 100 * len(values):
        return 0.0
    step = float((values[-1] - values[0]) / counts.sum())
    return 0.0 if _is_round(step) or _is_round(1 / step) else step


def _is_round(number: float) -> bool:
    """Whether a number is a whole number, or has at most three digits."""
    digits = number / 10 ** np.floor(np.log10(number)) * 100
    return any(abs(value / np.rint(value) - 1) < 1e-5 for value in (number, digits) if value > 0.5)


def _same_step(signatures: Sequence[Signature]) -> dict[tuple[int, int], str]:
    """Find pairs with a step that few cases of the cohort have: a step that many have comes from the scanner."""
    order = sorted((i for i, s in enumerate(signatures) if s.step), key=lambda i: signatures[i].step)
    groups: list[list[int]] = []
    for i in order:
        if groups and signatures[i].step <= signatures[groups[-1][-1]].step * (1 + _STEP_TOLERANCE):
            groups[-1].append(i)
        else:
            groups.append([i])
    most = max(2, len(signatures) // 20)
    return {
        (min(i, j), max(i, j)): f"all values of both are multiples of {signatures[i].step:.6g}"
        for group in groups
        if len(group) <= most
        for place, i in enumerate(group)
        for j in group[place + 1 :]
    }


def _same_content(signatures: Sequence[Signature]) -> dict[tuple[int, int], str]:
    """Find pairs whose correlation is far above that of the cohort's pairs, and who are each other's best match."""
    if len(signatures) < _FEWEST_PAIRS:
        return {}
    images = np.stack([s.coarse for s in signatures])
    # Subtract what all scans have in common. A mirrored copy has it unmirrored, so mirror before subtracting.
    spectra, reflected = (_spectra(these - images.mean(0)) for these in (images, images[:, ::-1]))
    shape = images.shape[1:]
    n = len(images)
    correlation, mirrored = np.full((n, n), -1.0), np.zeros((n, n), np.bool_)
    for i in track(range(n - 1), "comparing scans"):
        rest = slice(i + 1, n)
        straight, flipped = (
            irfftn(spectra[i].conj() * other[rest], shape, axes=(1, 2, 3), workers=-1).max((1, 2, 3))
            for other in (spectra, reflected)
        )
        correlation[i, rest] = correlation[rest, i] = np.maximum(straight, flipped)
        mirrored[i, rest] = mirrored[rest, i] = flipped > straight
    spread = correlation[np.triu_indices(n, 1)]
    centre = np.median(spread)
    threshold = max(_LEAST_CORRELATION, centre + _OUTLIER * 1.4826 * np.median(np.abs(spread - centre)))
    best = correlation.argmax(1)
    found = {}
    for i, j in ((i, int(j)) for i, j in enumerate(best) if i < j and best[j] == i):
        # Also try shifts of half a voxel of the coarse images.
        cross = spectra[i].conj() * (reflected if mirrored[i, j] else spectra)[j]
        if (value := _finest_peak(cross, shape)) > threshold:
            found[i, j] = f"the same content{' mirrored' if mirrored[i, j] else ''} (correlation {value:.2f})"
    return found


def _spectra(images: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return the spectra of images (n, X, Y, Z), normalised to mean 0 and norm 1.

    The inverse transform of conj(a) * b is the correlation of a and b at every circular shift.
    """
    centred = images - images.mean((1, 2, 3), keepdims=True)
    return rfftn(centred / np.maximum(np.sqrt((centred**2).sum((1, 2, 3), keepdims=True)), 1e-12), axes=(1, 2, 3))


def _finest_peak(cross: NDArray[np.complex64], shape: Sequence[int]) -> float:
    """Return the largest correlation at multiples of half a voxel, by zero-padding its spectrum to twice the size."""
    x, y, z = shape
    padded = np.zeros((2 * x, 2 * y, z + 1), cross.dtype)
    for source in (
        (a, b) for a in (slice(0, x // 2), slice(-(x // 2), None)) for b in (slice(0, y // 2), slice(-(y // 2), None))
    ):
        padded[source][..., : cross.shape[-1]] = cross[source]
    # The interpolated peak may overshoot.
    return min(1.0, float(8 * irfftn(padded, (2 * x, 2 * y, 2 * z)).max()))


def _numbered_in_pairs(names: Sequence[str], found: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return all pairs numbered 2k-1 and 2k if at least 90% of the pairs found are numbered like that; else none."""
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    keys = [None if part is None else (part[1], (int(part[2]) + 1) // 2) for part in parts]
    right = sum(keys[i] is not None and keys[i] == keys[j] for i, j in found)
    if right < _FEWEST_PAIRS or right < 0.9 * len(found):
        return []
    pairs = Counter(key for key in keys if key is not None)
    return [
        (i, j)
        for i, key in enumerate(keys)
        if key is not None and pairs[key] == 2
        for j in range(i + 1, len(keys))
        if keys[j] == key
    ]
