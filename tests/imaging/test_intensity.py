"""Limits of the intensity scale against numpy, and the scale itself."""

from __future__ import annotations

import numpy as np
import pytest

from medaug.imaging.intensity import Intensity, scale

VOLUME = np.random.default_rng(0).normal(100, 20, (12, 10, 8)).astype(np.float32)


def test_percentiles_are_those_of_the_whole_volume():
    limits = Intensity("percentile", (2.0, 90.0)).limits(VOLUME, np.zeros(VOLUME.shape, bool))
    assert limits == pytest.approx(tuple(np.percentile(VOLUME, (2, 90))))


def test_a_window_is_used_unchanged():
    assert Intensity("window", window=(-1000.0, 400.0)).limits(VOLUME) == (-1000, 400)
    with pytest.raises(ValueError, match="window"):
        Intensity("window").limits(VOLUME)


@pytest.mark.parametrize("foreground", [None, VOLUME > 110, np.zeros(VOLUME.shape, bool)])
def test_zscore_is_about_the_mean_of_the_foreground(foreground):
    values = VOLUME[foreground] if foreground is not None and foreground.any() else VOLUME
    low, high = Intensity("zscore", zscore_clip=2.5).limits(VOLUME, foreground)
    assert (low, high) == pytest.approx((values.mean() - 2.5 * values.std(), values.mean() + 2.5 * values.std()))


@pytest.mark.parametrize("method", ["percentile", "zscore"])
def test_a_constant_volume_still_has_a_scale(method):
    low, high = Intensity(method).limits(np.full((4, 4, 4), 7.0))
    assert low == pytest.approx(7) and high > low
    assert np.isfinite(scale(np.full((4, 4, 4), 7.0), low, high)).all()


@pytest.mark.parametrize("value", [0.0, -7.0, 7e8, -1e15, 1e30])
def test_a_constant_volume_of_any_size_has_a_scale(value):
    low, high = Intensity().limits(np.full((4, 4, 4), value))
    assert np.isfinite(scale(np.full((4, 4, 4), value), low, high)).all()


def test_small_units_keep_their_contrast():
    diffusivity = np.linspace(0.5e-9, 3e-9, 1000).reshape(10, 10, 10)  # m2/s
    found = scale(diffusivity, *Intensity(percentiles=(0, 100)).limits(diffusivity))
    np.testing.assert_allclose(found.ravel(), np.linspace(-1, 1, 1000), atol=1e-6)


def test_scale_is_linear_and_clipped():
    found = scale(np.array([-5, 0, 25, 50, 100, 400]), 0.0, 100.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-1, -1, -0.5, 0, 1, 1])
