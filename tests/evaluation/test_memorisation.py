"""Planted copies are found, new subjects are not flagged, and false alarms are rare."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from medaug.evaluation.memorisation import (
    ALARM,
    TrainingNeighbours,
    expected_near_copies,
    near_copies_p,
    near_copy_threshold,
)

SHAPE = (24, 30, 24)
ATLAS = gaussian_filter(np.random.default_rng(99).normal(size=SHAPE), 4)


def person(seed, modalities=1):
    """A pattern that all share, and a smooth structure of each one's own with a quarter of the contrast."""
    rng = np.random.default_rng(seed)
    own = np.stack([gaussian_filter(rng.normal(size=SHAPE), 2) for _ in range(modalities)])
    return 3 * ATLAS / ATLAS.std() + own / own.std()


@pytest.fixture(scope="module")
def training():
    return [person(seed) for seed in range(20)]


@pytest.fixture(scope="module")
def neighbours(training):
    return TrainingNeighbours(training)


def test_similarity_is_the_correlation_beyond_what_all_share():
    """Three volumes of +-1 in orthogonal patterns: less their mean, a pattern correlates with another at -1/2."""
    x, y, z = np.indices((4, 4, 4)) % 2 * 2.0 - 1
    # The centre of 60% of six voxels is the four in the middle.
    a, b, c = (np.pad(p, 1)[None] for p in (x * y, y * z, x * z))
    found = TrainingNeighbours([a, b, c])
    assert found.nearest(b) == (pytest.approx(1), 1)
    # a - m = (2a - b - c) / 3 and b - m = (2b - a - c) / 3 have the product -3 / 9 and the squared norm 6 / 9.
    apart = TrainingNeighbours([a, -a, b]).nearest(np.pad(x * y * z, 1)[None])[0]
    # p = xyz is orthogonal to all; m = b / 3, so (p - m).(+-a - m) = 1/9, |p - m|^2 = |a - m|^2 = 10/9; flips turn
    # p into -p at most, which changes nothing, and b itself is at (p - m).(b - m) = -2/9.
    assert apart == pytest.approx((1 / 9) / (10 / 9))


def test_a_training_scan_is_its_own_nearest(training, neighbours):
    for index, volume in enumerate(training):
        assert neighbours.nearest(volume) == (pytest.approx(1), index)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flipped", lambda v: v[:, ::-1]),
        ("turned", lambda v: v[:, ::-1, ::-1]),
        ("brightened", lambda v: 1.7 * v + 0.4),
        ("noised", lambda v: v + 0.5 * np.random.default_rng(1).normal(size=v.shape)),
        ("shifted", lambda v: shift(v, (0, 1, 0, 0), mode="nearest")),
        ("blurred", lambda v: gaussian_filter(v, (0, 1, 1, 1))),
        (
            "all of it",
            lambda v: 1.2 * v[:, :, ::-1] - 0.3 + 0.3 * np.random.default_rng(2).normal(size=v.shape),
        ),
    ],
)
def test_a_planted_copy_is_found(training, neighbours, name, change):
    threshold = near_copy_threshold([neighbours.nearest(person(seed))[0] for seed in range(100, 140)])
    similarity, index = neighbours.nearest(change(training[7]))
    assert index == 7
    assert similarity > threshold + 0.1


def test_new_subjects_are_flagged_as_often_as_the_percentile_predicts(neighbours):
    threshold = near_copy_threshold([neighbours.nearest(person(seed))[0] for seed in range(100, 160)])
    flagged = sum(neighbours.nearest(person(seed))[0] > threshold for seed in range(200, 260))
    assert flagged <= 10
    assert near_copies_p(flagged, 60, 60) > ALARM


def test_a_mixture_of_two_scans_is_less_similar_than_a_copy(training, neighbours):
    mixed = neighbours.nearest((training[3] + training[4]) / 2)[0]
    assert neighbours.nearest(person(300))[0] < mixed < 0.9


def test_contrast_between_modalities_does_not_hide_a_copy():
    training = [person(seed, modalities=2) for seed in range(5)]
    scales = np.array([1.0, 0.01])[:, None, None, None]
    assert TrainingNeighbours(training).nearest(training[2] * scales) == (pytest.approx(1), 2)


def test_odd_sides_and_blocks_are_flipped_alike():
    rng = np.random.default_rng(5)
    training = [rng.normal(size=(1, 83, 41, 37)) for _ in range(3)]
    assert TrainingNeighbours(training).nearest(training[1][:, ::-1, :, ::-1]) == (pytest.approx(1), 1)


def test_an_empty_volume_is_not_a_copy(neighbours):
    assert abs(neighbours.nearest(np.full((1, *SHAPE), -1.0))[0]) < 1


def test_one_scan_has_no_neighbours():
    with pytest.raises(ValueError, match="two training scans"):
        TrainingNeighbours([person(0)])


def test_the_threshold_is_the_95th_percentile():
    assert near_copy_threshold(np.arange(101) / 100) == pytest.approx(0.95)


@pytest.mark.parametrize("held_out", [1, 5, 22, 101])
def test_the_expected_share_matches_new_scans(held_out):
    """It holds for any distribution; here similarities are uniform, so the share above a threshold s is 1 - s."""
    rng = np.random.default_rng(6)
    shares = [1 - near_copy_threshold(rng.random(held_out)) for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(expected_near_copies(held_out), rel=0.05)
    assert expected_near_copies(1) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [1, *(pytest.param(num, marks=pytest.mark.slow) for num in (3, 21, 101))])
def test_the_alarm_is_rare_where_nothing_is_copied(held_out):
    rng = np.random.default_rng(7)
    for num in (8, 16, 64):
        flagged = [(rng.random(num) > near_copy_threshold(rng.random(held_out))).sum() for _ in range(2000)]
        values = np.array([near_copies_p(int(k), num, held_out) for k in flagged])
        for level in (0.01, 0.1):
            assert (values < level).mean() <= 1.3 * level + 0.005
    assert near_copies_p(0, 16, held_out) == pytest.approx(1)


def test_copies_raise_the_alarm_if_enough_scans_are_held_out():
    """With 21 held-out scans the percentile is the 20th smallest: one of 16 gives no alarm, nine of 16 do."""
    p = [near_copies_p(k, 16, 21) for k in range(17)]
    assert p == sorted(p, reverse=True)
    assert p[1] > 0.5 and p[9] < ALARM < p[5]
    # By counting: all 16 above the 20th of 21, that is the 19 smaller ones and it come first in the joint order.
    assert p[16] == pytest.approx(comb(17, 16) / comb(37, 16))
    assert near_copies_p(16, 16, 1) == pytest.approx(1 / 17), "one scan proves nothing"
