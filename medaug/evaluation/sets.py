"""Distances between sets of feature vectors: Frechet distance, density and coverage, and what real against real gives.

A distance between finite sets depends on their sizes, so it means little without the distance between two sets of real
scans of the same sizes, which `beside_floor` measures together with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

NUM_SPLITS = 20
NEIGHBOURS = 5

Vectors = NDArray[np.float64]
Distance = Callable[[Vectors, Vectors], float]


def frechet_distance(x: Vectors, y: Vectors) -> float:
    """Frechet distance between normal distributions with the means and covariances of two sets.

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) (Dowson & Landau, Journal of Multivariate Analysis 12(3), 1982);
    of learned features it is called FID (Heusel et al., NeurIPS 2017, section 1). 0 for equal sets.

    Args:
        x: features (m, d).
        y: features (n, d).

    Raises:
        ValueError: one of them has fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("at least two volumes are needed in each set")
    # The trace of (C_x C_y)^(1/2) is the sum of the singular values of A B' / ((m - 1) (n - 1))^(1/2), where C_x = A'A.
    a, b = ((one - one.mean(0)) / np.sqrt(len(one) - 1) for one in (x, y))
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * shared, 0))


def density_and_coverage(real: Vectors, other: Vectors, k: int = NEIGHBOURS) -> tuple[float, float]:
    """How densely another set lies among real points, and the share of the real points that it covers.

    Naeem et al., Reliable fidelity and diversity metrics for generative models (ICML 2020), equations 4 and 5. Each
    real point has a ball that reaches to its k-th nearest real neighbour. Density is the mean number of balls that an
    other point lies in, divided by k; coverage is the share of balls with at least one other point. For two samples of
    one distribution, density is 1 on average, and coverage is `expected_coverage`.

    Args:
        real: features (n, d) with n > k.
        other: features (m, d).
        k: number of neighbours.

    Raises:
        ValueError: there are not more than k real points.
    """
    if len(real) <= k:
        raise ValueError(f"more than {k} real volumes are needed")
    radii = np.sort(cdist(real, real), axis=1)[:, k]  # column 0 is the point itself
    inside = cdist(real, other) <= radii[:, None]
    return float(inside.sum() / (k * len(other))), float(inside.any(axis=1).mean())


def expected_coverage(real: int, other: int, k: int = NEIGHBOURS) -> float:
    """Mean coverage of two samples of one distribution.

    Naeem et al. 2020, equation 11: 1 - (n - 1) ... (n - k) / ((n + m - 1) ... (n + m - k)) for n real and m other
    points.
    """
    steps = np.arange(1, k + 1)
    return float(1 - np.prod((real - steps) / (real + other - steps)))


def marginal_distance(x: Vectors, y: Vectors) -> float:
    """Mean over the columns of the 1-Wasserstein distance between the values of two sets; NaN values are left out.

    Columns of which one set has no value are left out too.

    Args:
        x: (m, d).
        y: (n, d).
    """
    pairs = [(a[np.isfinite(a)], b[np.isfinite(b)]) for a, b in zip(x.T, y.T, strict=True)]
    found = [wasserstein_distance(a, b) for a, b in pairs if len(a) and len(b)]
    return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True)
class Beside:
    """A distance from real scans, and the same between real scans.

    Attributes:
        synthetic: mean distance of synthetic volumes from a half of the real ones.
        real: mean distance of the other half of the real ones from it, with as many volumes.
        num: number of volumes on the side that is compared.
    """

    synthetic: float
    real: float
    num: int


def beside_floor(
    distance: Distance,
    real: Vectors,
    subjects: Sequence[str],
    synthetic: Vectors,
    seed: int,
    least: int = 2,
) -> Beside | None:
    """Measure a distance of synthetic volumes from real ones beside that of real ones from each other.

    The subjects are split at random into halves A and B, 20 times. B and a random choice of as many synthetic volumes
    are both compared with A; if there are fewer synthetic volumes, so many of B are chosen. Both means are of sets of
    the same sizes, so they can be compared with each other.

    Args:
        distance: function of two sets, real ones first.
        real: one row per real volume, (n, d).
        subjects: subject of each row of `real`; volumes of a subject stay together.
        synthetic: (m, d).
        seed: seed of the splits.
        least: minimum number of volumes in each set.

    Returns:
        The means over the splits; None if a set would be smaller than `least`.
    """
    names, member = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    rng, found, half = np.random.default_rng(seed), [], len(names) // 2
    for _ in range(NUM_SPLITS):
        place = rng.permutation(len(names))[member]
        first, second = (np.flatnonzero(one) for one in (place < half, place >= half))
        num = min(len(second), len(synthetic))
        if min(len(first), num) < least:
            return None
        others = (real[rng.choice(second, num, replace=False)], synthetic[rng.choice(len(synthetic), num, False)])
        found.append([distance(real[first], one) for one in others] + [num])
    floor, value, num = np.mean(found, axis=0)
    return Beside(float(value), float(floor), round(float(num)))
