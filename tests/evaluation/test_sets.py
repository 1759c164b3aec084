"""Distances of sets against closed forms and other implementations; features and membership of known images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import mannwhitneyu
from skimage.feature import graycomatrix, graycoprops

from medaug.cohort.schema import LabelSchema
from medaug.evaluation import radiomics
from medaug.evaluation.mask_features import mask_features
from medaug.evaluation.membership import separation
from medaug.evaluation.sets import (
    beside_floor,
    density_and_coverage,
    expected_coverage,
    frechet_distance,
    marginal_distance,
)

RNG = np.random.default_rng(0)


def test_frechet_distance_is_that_of_the_matrix_square_root():
    x, y = RNG.normal(size=(40, 5)), RNG.normal(1, 2, (30, 5))
    cx, cy = np.cov(x.T), np.cov(y.T)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cx + cy - 2 * sqrtm(cx @ cy).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x[:3], x[:3] + 2) == pytest.approx(20)  # fewer volumes than features: a pure shift


def test_density_and_coverage_of_one_distribution_have_their_closed_forms():
    found = [density_and_coverage(RNG.normal(size=(20, 3)), RNG.normal(size=(12, 3))) for _ in range(300)]
    density, coverage = np.mean(found, axis=0)
    assert coverage == pytest.approx(expected_coverage(20, 12), abs=0.01)
    assert density == pytest.approx(1, abs=0.05)
    real = np.arange(8.0)[:, None]  # by hand: neighbours at distance 1, balls that touch their neighbours
    assert density_and_coverage(real, np.array([[0.5], [100.0]]), k=1) == (1.0, 0.25)
    assert density_and_coverage(real, real + 50, k=1) == (0.0, 0.0)


def test_the_floor_is_met_by_real_scans_and_exceeded_by_shifted_ones():
    real, subjects = RNG.normal(size=(60, 4)), [f"s{i // 2}" for i in range(60)]
    same = beside_floor(frechet_distance, real, subjects, RNG.normal(size=(200, 4)), 0)
    shifted = beside_floor(frechet_distance, real, subjects, RNG.normal(2, 1, (200, 4)), 0)
    assert same is not None and shifted is not None and (same.num, same.real) == (30, shifted.real)
    assert same.synthetic == pytest.approx(same.real, rel=0.3) and shifted.synthetic > 10 * shifted.real
    few = beside_floor(frechet_distance, real, subjects, real[:7], 0)
    assert few is not None and few.num == 7
    assert beside_floor(frechet_distance, real[:4], subjects[:4], real, 0, least=3) is None


def test_marginal_distances_leave_out_absent_structures():
    x = np.array([[0.0, np.nan], [1.0, 5.0], [2.0, np.nan]])
    assert marginal_distance(x, x + 3) == pytest.approx(3)
    assert np.isnan(marginal_distance(x, x * np.nan))


def test_textures_are_those_of_scikit_image_on_a_slice():
    plane = np.clip(RNG.normal(0, 0.4, (24, 20)), -1, 0.999)
    grey = ((plane + 1) / 2 * radiomics.LEVELS).astype(np.uint8)
    levels = radiomics.LEVELS
    # Its normalised matrices weigh all directions alike; the sum of counts is the convention of one matrix.
    counts = graycomatrix(grey, [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels, symmetric=True)
    matrix = counts.sum(axis=(2, 3)) / counts.sum()
    found = radiomics.cooccurrence(plane[..., None])
    np.testing.assert_allclose(found, matrix)
    props = [graycoprops(matrix[..., None, None], name).item() for name in ("contrast", "homogeneity", "ASM")]
    features = radiomics.texture_features(found)
    assert features[:3] == pytest.approx(props)
    assert features[3] == pytest.approx(graycoprops(matrix[..., None, None], "correlation").item())
    constant = radiomics.radiomic_features(np.full((8, 8, 8), 0.5))
    assert len(constant) == 16 and np.isfinite(constant).all() and len(radiomics.OFFSETS) == 13


def test_membership_is_mann_whitneys_statistic_and_finds_copies():
    member, other = RNG.normal(0.5, 1, 30), RNG.normal(0, 1, 20)
    names = [[f"{group}{i}" for i in range(n)] for group, n in (("m", 30), ("o", 20))]
    found = separation(member, names[0], other, names[1], 0)
    assert found.mean == pytest.approx(mannwhitneyu(member, other).statistic / 600)
    assert found.low < found.mean < found.high and (found.n, found.clusters) == (50, 50)
    copies = separation(np.ones(5), names[0][:5], np.zeros(4), names[1][:4], 0)
    assert (copies.mean, copies.low, copies.high) == (1, 1, 1)
    assert separation(np.ones(5), names[0][:5], np.ones(4), names[1][:4], 0).mean == 0.5
    assert np.isnan(separation(np.ones(2), ["m", "m"], np.ones(4), names[1][:4], 0).low)


@pytest.mark.slow
def test_the_interval_of_membership_covers_one_half_when_nothing_is_revealed():
    names = [[f"{group}{i}" for i in range(20)] for group in "mo"]
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = separation(rng.normal(size=20), names[0], rng.normal(size=20), names[1], seed)
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 300 <= 0.99


def test_volume_shape_and_position_of_a_box():
    schema = LabelSchema(((0, "background"), (1, "box"), (2, "absent")))
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:4, 3:7, 1:9] = 1
    found = mask_features(label, schema, (1.0, 2.0, 0.5))
    sides = np.array([2.0, 8.0, 4.0])
    volume = sides.prod()
    assert found["volume"] == pytest.approx([np.cbrt(volume), 0])
    area = 2 * sum(volume / sides)
    assert found["shape"][:2] == pytest.approx([8 / 2, area / (6 * volume ** (2 / 3))])
    assert found["position"][:3] == pytest.approx([2.5, 4.5 * 2, 4.5 * 0.5])
    assert np.isnan(found["shape"][2:]).all() and np.isnan(found["position"][3:]).all()
