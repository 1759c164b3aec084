"""Sharpness against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medaug.evaluation.texture import central_box, mean_absolute_gradient


def test_a_ramp_has_the_mean_of_its_slopes():
    x, y, z = np.meshgrid(range(5), range(6), range(7), indexing="ij")
    assert mean_absolute_gradient(1.5 * x - 3 * y + 0 * z) == pytest.approx((1.5 + 3 + 0) / 3)


def test_white_noise_has_two_sigma_over_root_pi():
    noise = np.random.default_rng(0).normal(0, 0.3, (48, 48, 48)).astype(np.float32)
    assert mean_absolute_gradient(noise) == pytest.approx(2 * 0.3 / np.sqrt(np.pi), rel=0.01)
    assert mean_absolute_gradient(gaussian_filter(noise, 1)) < 0.3 * mean_absolute_gradient(noise)


def test_unsigned_integers_do_not_wrap():
    assert mean_absolute_gradient(np.array([0, 200, 0], np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)) == (
        pytest.approx(200 / 3)
    )


def test_planes_are_refused():
    with pytest.raises(ValueError, match="three axes"):
        mean_absolute_gradient(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="neighbours"):
        mean_absolute_gradient(np.zeros((1, 1, 1)))


def test_a_single_slice_has_neighbours_along_two_axes():
    x, y = np.meshgrid(range(5), range(6), indexing="ij")
    assert mean_absolute_gradient((1.5 * x - 3 * y)[..., None]) == pytest.approx((1.5 + 3) / 2)


def test_the_centre_is_as_far_from_either_end():
    volume = np.zeros((40, 56, 41))
    assert volume[central_box(volume.shape, 0.6)].shape == (24, 34, 25)
    assert volume[central_box(volume.shape, 1)].shape == volume.shape
    box = central_box((41, 7), 0.5)
    assert [(part.start, side - part.stop) for part, side in zip(box, (41, 7), strict=True)] == [(10, 10), (2, 2)]
