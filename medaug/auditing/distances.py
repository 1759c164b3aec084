"""Measures of the pairs as a set: distances from real training scans, beside those of real scans from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from medaug.auditing.measures import Material, Measure
from medaug.auditing.results import Group
from medaug.data.cases import ModelCase
from medaug.evaluation.fidelity import kernel_distance
from medaug.evaluation.mask_features import mask_features
from medaug.evaluation.radiomics import VERSION, radiomic_features
from medaug.evaluation.sets import (
    NEIGHBOURS,
    Distance,
    Vectors,
    beside_floor,
    density_and_coverage,
    frechet_distance,
    marginal_distance,
)

REAL_HALVES = "real_halves"
"""Real training scans against other real training scans, in sets of the same sizes."""
_JUDGE = "features: the judge's coarsest level, in standard deviations of the real training scans"
_FLOOR = "both values are means over 20 random halves of the real training subjects, in sets of the same sizes"

Features = Callable[[Material, Sequence[ModelCase]], Vectors]


def _judge_features(material: Material, cases: Sequence[ModelCase]) -> Vectors:
    assert material.judge is not None
    return np.array([material.judge.features(case.image) for case in cases], np.float64)


def _radiomics(material: Material, cases: Sequence[ModelCase]) -> Vectors:
    return np.array([np.concatenate([radiomic_features(volume) for volume in case.image]) for case in cases])


def _masks(kind: str, material: Material, cases: Sequence[ModelCase]) -> Vectors:
    spacing = material.spacing
    return np.array([mask_features(np.asarray(case.label), material.schema, spacing)[kind] for case in cases])


def compare(features: Features, distance: Distance, least: int, material: Material) -> Iterator[Group]:
    """A distance between the pairs and the real training scans, beside that of real scans from each other.

    Features are standardised by the real training scans; those that are constant there are left out. Yields nothing if
    there are too few scans.

    Args:
        features: function that makes one row per case.
        distance: distance of a set from real scans.
        least: minimum number of scans in a half.
        material: what is measured.
    """
    assert material.train is not None
    if len(material.train) < 2 * least:
        return
    real, synthetic = features(material, material.train), features(material, material.synthetic)
    mean, std = np.nanmean(real, axis=0), np.nanstd(real, axis=0)
    kept = std > 1e-9
    real, synthetic = ((one[:, kept] - mean[kept]) / std[kept] for one in (real, synthetic))
    subjects = [case.case.subject for case in material.train]
    found = beside_floor(distance, real, subjects, synthetic, material.settings.seed, least) if kept.any() else None
    if found is not None and np.isfinite([found.synthetic, found.real]).all():
        yield Group.of_set(REAL_HALVES, found.real, found.num)
        yield Group.of_set("synthetic", found.synthetic, found.num)


def _coverage(real: Vectors, other: Vectors) -> float:
    return density_and_coverage(real, other)[1]


def _density(real: Vectors, other: Vectors) -> float:
    return density_and_coverage(real, other)[0]


def _measure(title: str, note: str, features: Features, distance: Distance, least: int = 2) -> Measure:
    needs = ("judge", "train") if features is _judge_features else ("train",)
    return Measure(title, "", 3, None, f"{note}; {_FLOOR}", partial(compare, features, distance, least), needs)


FRECHET = _measure("Frechet distance", f"Frechet distance; {_JUDGE}", _judge_features, frechet_distance)
KERNEL = _measure(
    "Kernel distance", f"KID, which is 0 on average for equal distributions; {_JUDGE}", _judge_features, kernel_distance
)
RADIOMICS = _measure(
    "Frechet radiomics distance",
    f"Frechet distance of 16 intensity, gradient and texture features per modality (version {VERSION}), computed "
    "without a network; not comparable with the package frd-score",
    _radiomics,
    frechet_distance,
)
COVERAGE = _measure(
    "Coverage",
    f"share of real scans with a compared scan nearer than their {NEIGHBOURS}th real neighbour; low: missing variety; "
    f"{_JUDGE}",
    _judge_features,
    _coverage,
    NEIGHBOURS + 1,
)
DENSITY = _measure(
    "Density",
    "how densely the compared scans lie among real ones, 1 on average for real scans; low: unlike real scans; "
    f"{_JUDGE}",
    _judge_features,
    _density,
    NEIGHBOURS + 1,
)
_WASSERSTEIN = "1-Wasserstein distance of the masks' {} from that of real masks, in standard deviations of real masks"
MASK_VOLUMES = _measure(
    "Mask volumes", _WASSERSTEIN.format("volumes (cube root)"), partial(_masks, "volume"), marginal_distance
)
MASK_SHAPES = _measure(
    "Mask shapes", _WASSERSTEIN.format("elongation and compactness"), partial(_masks, "shape"), marginal_distance
)
MASK_POSITIONS = _measure(
    "Mask positions", _WASSERSTEIN.format("centroids"), partial(_masks, "position"), marginal_distance
)
