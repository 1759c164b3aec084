from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from medaug.dicom.rtstruct import fill


def circle(radius: float, centre: Sequence[float] = (0, 0), points: int = 400) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([np.cos(angle), np.sin(angle)]) * radius + centre


@given(st.lists(st.tuples(*[st.floats(-3, 15)] * 2), min_size=3, max_size=9))
def test_fill_agrees_with_counting_crossings(points: list[tuple[float, float]]) -> None:
    ring = np.array(points) + 0.123456789  # off the lattice, where conventions differ
    shape = (11, 13)
    expected = np.zeros(shape, bool)
    for x, y in np.ndindex(shape):
        for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            expected[x, y] ^= (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay)
    different = fill([ring], shape) != expected
    # Only a centre on an edge may differ.
    for centre in np.argwhere(different):
        starts, ends = ring, np.roll(ring, -1, axis=0)
        along = ends - starts
        share = np.clip(((centre - starts) * along).sum(1) / np.maximum((along**2).sum(1), 1e-30), 0, 1)
        assert np.linalg.norm(starts + share[:, None] * along - centre, axis=1).min() < 2e-3


@given(st.floats(3, 20), st.floats(0.2, 1), st.floats(0, np.pi), st.tuples(st.floats(22, 26), st.floats(22, 26)))
def test_area_of_an_ellipse(long: float, ratio: float, turn: float, centre: tuple[float, float]) -> None:
    ring = circle(1) * (long, long * ratio)
    ring = ring @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + centre
    # The lattice points in a convex body differ from its area by less than its perimeter.
    assert abs(fill([ring], (49, 49)).sum() - np.pi * long**2 * ratio) < 2 * np.pi * long + 1


def test_area_on_average_is_unbiased() -> None:
    draw = np.random.default_rng(1)
    areas = [fill([circle(5.3, draw.uniform(9, 10, 2))], (20, 20)).sum() for _ in range(400)]
    assert np.mean(areas) == pytest.approx(np.pi * 5.3**2, rel=2e-3)


@given(
    st.lists(st.lists(st.tuples(*[st.integers(-2, 12)] * 2), min_size=1, max_size=7), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3]),
)
def test_fill_does_not_depend_on_flips_and_transposition(rings: list[list[tuple[int, int]]], divisor: int) -> None:
    # Corners on the lattice itself are the hard case.
    polygons = [np.array(ring) / divisor for ring in rings]
    image = fill(polygons, (10, 8))
    np.testing.assert_array_equal(fill([ring[:, ::-1] for ring in polygons], (8, 10)), image.T)
    np.testing.assert_array_equal(fill([(9, 0) + ring * (-1, 1) for ring in polygons], (10, 8)), image[::-1])
    np.testing.assert_array_equal(fill([ring[::-1] for ring in polygons[::-1]], (10, 8)), image)
    padded = fill([ring + (3, 2) for ring in polygons], (16, 12))
    np.testing.assert_array_equal(padded[3:13, 2:10], image)


def test_fill_agrees_with_scikit_image() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        ring = draw.uniform(5, 95, (30, 2))
        assert (fill([ring], (100, 90)) != polygon2mask((100, 90), ring)).mean() < 2e-3


def test_a_ring_through_the_outer_centres_keeps_them() -> None:
    # As cv2.findContours traces: the mask's own outer pixels, and for a hole the mask's pixels around it.
    mask = np.zeros((12, 12), bool)
    mask[2:10, 3:11] = True
    mask[5:7, 6:8] = False
    rings = [np.array([(2, 3), (9, 3), (9, 10), (2, 10)]), np.array([(4, 5), (7, 5), (7, 8), (4, 8)])]
    np.testing.assert_array_equal(fill(rings, mask.shape), mask)


def test_a_keyhole_is_a_hole() -> None:
    outer, inner = circle(8, (10.3, 10.2)), circle(3, (10.3, 10.2))
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[:0:-1], inner[:1]])
    np.testing.assert_array_equal(fill([keyhole], (21, 21)), fill([outer, inner], (21, 21)))
    assert not fill([keyhole], (21, 21))[10, 10]


@pytest.mark.parametrize("ring", [np.full((3, 2), 1e300), np.array([(-1e300, -1e300), (1e300, -1e300), (0, 1e300)])])
def test_absurd_coordinates_do_not_crash(ring: np.ndarray) -> None:
    assert fill([ring], (5, 4)).shape == (5, 4)


def test_filling_is_fast() -> None:
    ring = circle(200, (255.3, 256.1), 1000)
    start = time.process_time()
    for _ in range(50):
        fill([ring], (512, 512))
    assert time.process_time() - start < 2.5  # 3 ms each on one core
