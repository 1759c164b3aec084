"""Spectra against closed forms, distances between sets against direct sums."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medaug.evaluation.fidelity import (
    deviations,
    differences_of_halves,
    kernel_distance,
    log_spectrum,
    octave_spectrum,
    spectral_discrepancy,
    spectral_distance,
    texture,
)
from medaug.evaluation.texture import mean_absolute_gradient


def white(seed, sigma=1.0, shape=(32, 32, 32)):
    return np.random.default_rng(seed).normal(0, sigma, shape)


def cosine(cycles, axis=1, shape=(32, 32, 32)):
    x = np.indices(shape)[axis]
    return np.cos(2 * np.pi * cycles * x / shape[axis] + 0.7)


@pytest.mark.slow
def test_white_noise_is_flat_at_its_variance():
    power = np.mean([octave_spectrum(white(seed, 0.3), crop=1) for seed in range(100)], axis=0)
    assert power.shape == (4,)
    np.testing.assert_allclose(power[:2], 0.09, rtol=0.02)
    assert power[2] == pytest.approx(0.09, rel=0.06)  # 232 frequencies, which the window ties to their neighbours
    assert power[3] == pytest.approx(0.09, rel=0.15)  # 26, and the mean is removed


@pytest.mark.parametrize(("cycles", "band"), [(12, 0), (6, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cosine_has_power_only_in_its_octave(cycles, band, axis):
    power = octave_spectrum(cosine(cycles, axis), crop=1)
    others = np.delete(power, band)
    assert power[band] > 0
    assert others.max() < 1e-20 * power[band]


def test_an_octave_begins_at_its_lower_end():
    """The window keeps 4 of 6 parts of a cosine of 1/4 cycle per voxel in place and moves 1 to either side."""
    power = octave_spectrum(cosine(8), crop=1) * np.bincount(_bands((32, 32, 32)))
    assert power[0] / power.sum() == pytest.approx(5 / 6)


def _bands(shape):
    """An independent statement of which frequency lies in which band, by comparison with the edges."""
    grids = np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij")
    f = np.linalg.norm(grids, axis=0).ravel()[1:]
    edges = [edge for edge in (1 / 4, 1 / 8, 1 / 16, 1 / 32) if 2 * edge > 1 / min(shape)]
    return np.array([next((k for k, edge in enumerate(edges) if value >= edge), len(edges) - 1) for value in f])


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 34, 24), (9, 12, 31)])
def test_parseval(shape):
    """Power times number of frequencies, over the bands, is the energy of what was transformed."""
    volume = white(1, shape=shape) + np.indices(shape)[0]
    w = [np.sin(np.pi * np.arange(side) / side) ** 2 for side in shape]
    window = np.einsum("i,j,k->ijk", *w)
    centred = window * (volume - (window * volume).sum() / window.sum())
    counts = np.bincount(_bands(shape))
    assert counts.min() > 0
    assert (octave_spectrum(volume, crop=1) * counts).sum() == pytest.approx(
        volume.size * (centred**2).sum() / (window**2).sum()
    )


def test_a_ramp_has_no_fine_structure():
    """Without a window, its jump from face to face would leave 1/f^2 in the finest band."""
    ramp = np.indices((32, 32, 32))[0] / 32
    power = octave_spectrum(ramp, crop=1)
    assert power[0] < 1e-6 * power[-1]
    bare = np.abs(np.fft.fftn(ramp - ramp.mean())) ** 2 / ramp.size
    assert bare.ravel()[1:][_bands(ramp.shape) == 0].mean() > 100 * power[0]


def test_only_the_centre_is_measured():
    volume = white(2, shape=(20, 30, 20))
    padded = np.pad(volume, ((4, 4), (6, 6), (4, 4)), constant_values=-1)
    np.testing.assert_allclose(octave_spectrum(padded, crop=20 / 28), octave_spectrum(volume, crop=1))


def test_offset_does_not_count_and_contrast_counts_squared():
    volume = white(3)
    np.testing.assert_allclose(octave_spectrum(3 * volume + 5), 9 * octave_spectrum(volume))
    np.testing.assert_allclose(log_spectrum(10 * volume), log_spectrum(volume) + 20)


def test_a_constant_volume_has_finite_decibels():
    np.testing.assert_allclose(log_spectrum(np.ones((16, 16, 16), np.float32)), -120)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 5)])
def test_planes_and_slabs_are_refused(shape):
    with pytest.raises(ValueError, match="three axes"):
        octave_spectrum(np.zeros(shape))


def test_spectral_distance_is_in_standard_deviations():
    rng = np.random.default_rng(4)
    real = [white(i) * rng.uniform(0.8, 1.2) for i in range(40)]
    spectra = np.array([log_spectrum(volume) for volume in real])
    reference = spectra.mean(0), spectra.std(0)
    distances = [spectral_distance(volume, *reference) for volume in real]
    assert np.mean(np.square(distances)) == pytest.approx(1)
    volume = white(99)
    by_hand = [(a - m) / s for a, m, s in zip(log_spectrum(volume), *reference, strict=True)]
    assert spectral_distance(volume, *reference) == pytest.approx((sum(d * d for d in by_hand) / len(by_hand)) ** 0.5)
    assert spectral_distance(gaussian_filter(volume, 0.7), *reference) > 5


def test_the_discrepancy_is_the_transport_between_normals():
    """In one dimension, the optimal transport pairs the sorted values."""
    rng = np.random.default_rng(12)
    real, other = rng.normal(3, 2, (200_000, 2)), rng.normal([4, 3], [1, 2], (200_000, 2))
    moved = np.sqrt(np.mean((np.sort(real, 0) - np.sort(other, 0)) ** 2, axis=0)) / real.std(0)
    found = spectral_discrepancy(other, real.mean(0), real.std(0))
    assert found == pytest.approx(np.sqrt(np.mean(moved**2)), rel=0.02)
    assert found == pytest.approx(np.sqrt((0.5**2 + 0.5**2) / 2), rel=0.02)
    assert spectral_discrepancy(real, real.mean(0), real.std(0)) == pytest.approx(0, abs=1e-9)


def test_less_variety_does_not_hide_a_wrong_mean():
    rng = np.random.default_rng(13)
    real = rng.normal(size=(50, 4))
    reference = real.mean(0), real.std(0)
    collapsed = np.tile(real.mean(0) + 0.5 * real.std(0), (20, 1))
    assert spectral_discrepancy(collapsed, *reference) == pytest.approx(np.sqrt(0.25 + 1))


def test_texture_is_gradient_and_spectrum():
    volume = white(5)
    row = texture(volume)
    assert row[0] == mean_absolute_gradient(volume)
    np.testing.assert_array_equal(row[1:], log_spectrum(volume))


def test_halves_differ_as_means_of_their_size_do():
    """Subjects' values are N(0, 1): the difference of two means of h is N(0, 2 / h), its mean size sqrt(4 / (pi h))."""
    rng = np.random.default_rng(6)
    sizes = [
        differences_of_halves(rng.normal(size=(41, 3)), [str(i) for i in range(41)], seed, 20).mean()
        for seed in range(60)
    ]
    assert np.mean(sizes) == pytest.approx(np.sqrt(4 / (np.pi * 20)), rel=0.05)


def test_a_subjects_volumes_stay_in_one_half():
    """Two volumes +a and -a of each subject: whole subjects average to 0 in every half, split ones would not."""
    values = np.array([[a, 1.0] for s in range(8) for a in (s + 1.0, -s - 1.0)])
    differences = differences_of_halves(values, [str(s) for s in range(8) for _ in range(2)], 0, 50)
    np.testing.assert_allclose(differences, 0, atol=1e-12)
    np.testing.assert_array_equal(differences, differences_of_halves(values, list("0011223344556677"), 0, 50))
    with pytest.raises(ValueError, match="single subject"):
        differences_of_halves(values, ["a"] * 16, 0)


def test_deviations_are_counted_in_halves():
    rng = np.random.default_rng(7)
    real = rng.normal(size=(60, 2))
    names, subjects = ("a", "b"), [str(i) for i in range(60)]
    yardstick = differences_of_halves(real, subjects, 3)
    synthetic = real.mean(0) + yardstick.mean(0) * [1.9, -2.1]
    same, worse = deviations(np.array([synthetic - 1, synthetic + 1]), real, subjects, names, 3)
    assert (same.passed, worse.passed) == (True, False)
    assert (same.ratio, worse.ratio) == (pytest.approx(1.9), pytest.approx(2.1))
    assert same.name == "a"
    numbers = (same.real, same.synthetic, same.halves_mean, same.halves_std)
    a, halves = real[:, 0].mean(), yardstick[:, 0]
    assert numbers == pytest.approx((a, synthetic[0], halves.mean(), halves.std()))


def direct(x, y):
    """Equation 4 of Binkowski et al. as it is written, pair by pair."""
    m, n, d = len(x), len(y), len(x[0])

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


def test_kernel_distance_is_the_double_sum():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(7, 5)), rng.normal(0.5, 2, size=(4, 5))
    assert kernel_distance(x, y) == pytest.approx(direct(x.tolist(), y.tolist()))
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(y, x))
    with pytest.raises(ValueError, match="two volumes"):
        kernel_distance(x, y[:1])


@pytest.mark.slow
def test_one_distribution_is_at_zero_on_average_at_any_size():
    rng = np.random.default_rng(9)
    values = np.array([kernel_distance(rng.normal(size=(3, 4)), rng.normal(size=(9, 4))) for _ in range(4000)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    shifted = [kernel_distance(rng.normal(size=(3, 4)), rng.normal(1, 1, size=(9, 4))) for _ in range(400)]
    assert np.mean(shifted) > 10 * abs(values.mean())
