"""A known bias field is found, and the lattice gives one field to both directions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medaug.data.preprocessing import Placement, Preprocessing
from medaug.imaging.bias import bias_field, estimate_bias

SHAPE = (24, 28, 20)


@pytest.fixture(scope="module")
def shaded():
    """A head of two tissues under a smooth field; background exactly 0."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    inside = np.sum((places / 0.85) ** 2, axis=0) < 1
    white = np.sum((places / 0.6) ** 2, axis=0) < 1
    field = np.exp(0.5 * places[0] - 0.3 * places[1] ** 2 + 0.2 * places[2])
    clean = np.where(inside, np.where(white, 900, 600), 0) + inside * rng.normal(0, 10, SHAPE)
    return (clean * field).astype(np.float32), field, inside, white


@pytest.mark.slow
def test_a_planted_field_is_found(shaded):
    volume, field, inside, _ = shaded
    lattice = estimate_bias(volume, (1.0, 1.0, 1.2))
    assert lattice.shape == (12, 12, 12)
    error = np.log(bias_field(lattice, SHAPE) / field)[inside]
    assert np.std(error) < 0.25 * np.std(np.log(field)[inside])


@pytest.mark.slow
def test_the_estimate_is_the_same_every_time(shaded):
    volume = shaded[0][:18, :18, :18]
    assert np.array_equal(estimate_bias(volume, (1, 1, 1)), estimate_bias(volume, (1, 1, 1)))


@pytest.mark.parametrize("volume", [np.zeros((9, 9, 9)), np.full((20, 20, 20), -5.0), np.ones((30, 30, 2))])
def test_too_little_foreground_gives_no_field(volume):
    lattice = estimate_bias(volume, (1, 1, 1))
    assert lattice.shape == tuple(min(12, side) for side in volume.shape) and not lattice.any()
    assert np.all(bias_field(lattice, volume.shape) == 1)


def test_the_lattice_reaches_from_the_first_voxel_to_the_last():
    ramp = np.broadcast_to(np.linspace(0, 1, 12)[:, None, None], (12, 12, 12))
    field = np.log(bias_field(ramp, (45, 5, 12)))
    assert field.shape == (45, 5, 12)
    np.testing.assert_allclose(field[:, 2, 3], np.linspace(0, 1, 45), atol=0.02)
    np.testing.assert_allclose(field[[0, 22, -1], 2, 3], [0, 0.5, 1], atol=1e-6)


@pytest.mark.slow
def test_preprocessing_divides_and_multiplies_by_one_field(shaded):
    volume, _, _, white = shaded
    space = Preprocessing((24, 32, 24), None, (0.0, 100.0), bias_correction=True)
    model, placement = space.apply_image(volume[None], np.diag([-1.0, 1.0, 1.2, 1.0]))
    assert Placement.from_dict(json.loads(json.dumps(placement.to_dict()))) == placement
    restored = space.invert_image(model, placement)[0]
    np.testing.assert_allclose(restored, volume, atol=1e-6 * volume.max())
    # White matter has one brightness now, but did not before.
    after = (model[0, :, 2:-2, 2:-2][::-1] + 1)[white]
    assert np.std(after) / np.mean(after) < 0.4 * np.std(volume[white]) / np.mean(volume[white])
