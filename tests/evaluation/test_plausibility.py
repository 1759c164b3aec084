"""The plausibility of shapes, against a dense covariance matrix and on shapes that are known to be right or wrong."""

from __future__ import annotations

import numpy as np
import pytest

from medaug.evaluation.plausibility import Plausibility, _Gaussian, distance_map

SIDE = 20
GRID = np.indices((SIDE,) * 3).astype(float)


def ellipsoid(radii, centre=(9.5, 9.5, 9.5)):
    """Two halves of an ellipsoid, classes 1 and 2."""
    inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(GRID, centre, radii, strict=True)) <= 1
    return np.where(inside, 1 + (GRID[1] > centre[1]), 0).astype(np.uint8)


RNG = np.random.default_rng(0)
HUMAN = [ellipsoid(RNG.normal((4, 6, 4), (0.4, 0.6, 0.4))) for _ in range(8)]
SUBJECTS = [f"s{i // 2}" for i in range(8)]


@pytest.fixture(scope="module")
def usual() -> Plausibility:
    return Plausibility.of(HUMAN, SUBJECTS)


def test_the_distance_is_that_of_a_dense_covariance_matrix():
    vectors, rest = np.random.default_rng(1).normal(size=(5, 12)), 0.3
    away = np.random.default_rng(2).normal(size=12)
    population = _Gaussian.of(vectors)
    covariance = np.cov(vectors.T) + rest * np.eye(12)
    centred = away - vectors.mean(axis=0)
    expected = np.sqrt(centred @ np.linalg.solve(covariance, centred) / 12)
    assert population.distance(away, rest) == pytest.approx(expected)
    basis = (vectors[1:] - vectors[0]).T
    residual = centred - basis @ np.linalg.lstsq(basis, centred, rcond=None)[0]
    assert population.rest(away) == pytest.approx(np.mean(residual**2))


def test_usual_shapes_count_fully_wherever_they_lie_and_unusual_ones_less(usual):
    assert all(usual.distance(label) <= 1 and usual.weight(label) == 1 for label in HUMAN)
    fresh = ellipsoid((4.1, 5.9, 3.9))
    moved = np.roll(fresh, (2, -1, 3), axis=(0, 1, 2))
    assert usual.weight(fresh) == 1 and usual.distance(moved) == pytest.approx(usual.distance(fresh))
    arm = fresh.copy()
    arm[8:12, 12:19, 12:19] = 2
    swollen, nothing = ellipsoid((7, 9, 7)), np.zeros_like(fresh)
    assert usual.weight(arm) < 0.6 and usual.weight(swollen) < 0.2 and usual.weight(nothing) == 0
    assert usual.weight(np.where(fresh, 3 - fresh, 0).astype(np.uint8)) < 0.2, "the classes are swapped"


def test_mirrored_shapes_are_usual_if_the_population_has_two_sides():
    wedges = [np.where(GRID[0] + 0.3 * GRID[1] < 12, label, 0).astype(np.uint8) for label in HUMAN]
    flipped = wedges[0][::-1]
    one, both = (Plausibility.of(wedges, SUBJECTS, mirror) for mirror in ((), (0,)))
    assert both.weight(flipped) == 1 > one.weight(flipped)


def test_absent_classes_are_far_away_and_a_population_needs_three_subjects():
    assert np.all(distance_map(np.zeros((4, 4, 4), np.uint8), (1, 2)) == 5.0)
    with pytest.raises(ValueError, match="2 subjects, at least 3"):
        Plausibility.of(HUMAN[:4], SUBJECTS[:4])
