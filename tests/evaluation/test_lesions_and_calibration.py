"""Surface Dice, volume error, lesion counts and calibration against independent implementations and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_surface_dice
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.errors import UserError
from medaug.evaluation.calibration import brier, calibration_box, calibration_error
from medaug.evaluation.lesions import lesion_f1, lesion_sensitivity
from medaug.evaluation.scores import METRICS, check_scoring, segmentation_scores, volume_error
from medaug.evaluation.surfaces import surface_dice
from medaug.options import ScoringOptions

SPACING = (0.8, 1.0, 2.5)
ONE = LabelSchema(((0, "background"), (1, "x")))
SEEDS = st.integers(0, 10_000)


def _blob(seed, share=0.2, shape=(13, 11, 9)):
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return smooth > np.quantile(smooth, 1 - share)


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([0.0, 0.8, 1.0, 2.0]))
def test_surface_dice_equals_all_pairs_of_surface_voxels_and_monai(seed, tolerance):
    p, t = _blob(seed), _blob(seed + 1)
    points = [np.argwhere(m & ~binary_erosion(m)) * SPACING for m in (p, t)]
    distance = cdist(*points)
    near = np.concatenate([distance.min(1), distance.min(0)]) <= tolerance + 1e-9
    assert surface_dice(p, t, SPACING, tolerance) == pytest.approx(near.mean())
    one, other = (torch.from_numpy(mask)[None, None] for mask in (p, t))
    slack = tolerance + 1e-4  # MONAI's distances have single precision
    monai = compute_surface_dice(one, other, [slack], include_background=True, spacing=list(SPACING))
    assert surface_dice(p, t, SPACING, tolerance) == pytest.approx(float(monai), abs=1e-6)


@settings(max_examples=15)
@given(SEEDS)
def test_volume_error_is_simpleitks_volume_similarity(seed):
    p, t = _blob(seed, 0.1), _blob(seed + 1, 0.3)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (p, t)))
    assert volume_error(p, t) == pytest.approx(100 * overlap.GetVolumeSimilarity(1))
    assert volume_error(p, t) < 0 < volume_error(t, p)


@settings(max_examples=15)
@given(SEEDS)
def test_lesions_are_those_of_simpleitk(seed):
    p, t = _blob(seed, 0.08), _blob(seed + 1, 0.08)

    def touched(mask, other):
        image = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)  # fully connected
        statistics = sitk.LabelIntensityStatisticsImageFilter()
        statistics.Execute(image, sitk.GetImageFromArray(other.astype(np.uint8)))
        return np.mean([statistics.GetMaximum(label) > 0 for label in statistics.GetLabels()])

    sensitivity, precision = touched(t, p), touched(p, t)
    assert lesion_sensitivity(p, t) == pytest.approx(sensitivity)
    harmonic = 2 * sensitivity * precision / (sensitivity + precision) if sensitivity else 0.0
    assert lesion_f1(p, t) == pytest.approx(harmonic)


def test_two_of_three_lesions_are_found_and_one_finding_is_false():
    t, p = np.zeros((2, 20, 20, 20), bool)
    for corner in (2, 8, 14):
        t[corner : corner + 3, 2:5, 2:5] = True
    p[2, 2, 2] = p[16, 4, 4] = p[10, 15, 15] = True
    assert lesion_sensitivity(p, t) == lesion_f1(p, t) == pytest.approx(2 / 3)
    diagonal = np.zeros((4, 4, 4), bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = True
    first = np.zeros_like(diagonal)
    first[0, 0, 0] = True
    assert lesion_sensitivity(first, diagonal) == 1 and lesion_sensitivity(first, diagonal, 6) == 0.5


def test_calibration_has_its_closed_forms():
    rng = np.random.default_rng(0)
    t = rng.random((20, 20, 20)) < 0.3
    constant = np.full(t.shape, 0.8)
    assert calibration_error(constant, t) == pytest.approx(0.8 - t.mean())
    assert brier(constant, t) == pytest.approx(0.04 * t.mean() + 0.64 * (1 - t.mean()))
    assert calibration_error(t.astype(float), t) == brier(t.astype(float), t) == 0
    p = rng.random(t.shape)
    expected, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (p > low) & (p <= high)
        expected += inside.mean() * abs(p[inside].mean() - t[inside].mean())
    assert calibration_error(p, t) == pytest.approx(expected)
    honest = rng.random(t.shape) < p  # a voxel is true as often as it is said to be
    assert calibration_error(p, honest) < 0.03 < calibration_error(p**2, honest)


def test_calibration_is_measured_near_the_true_structure_and_where_the_truth_is_known():
    truth = np.zeros((40, 40, 40), np.uint8)
    truth[18:20, 18:20, 18:20] = 1
    truth[19, 19, 30] = IGNORE
    box = calibration_box(truth == 1, truth != IGNORE, (1.0, 2.0, 0.5))
    assert box.sum() == 22 * 12 * 40 - 1 and box[8, 13, 0] and not box[7, 13, 0] and not box[8, 12, 0]
    probability = np.where(box, 0.25, 1.0)
    scores = segmentation_scores(
        truth == 1, truth, (1.0, 2.0, 0.5), ONE, None, np.stack([1 - probability, probability])
    )
    rows = {metric: value for _, metric, value in scores}
    assert rows["ece"] == pytest.approx(abs(0.25 - 8 / box.sum()))
    assert list(rows) == [name for name in METRICS if not name.startswith("lesion")]
    assert calibration_box(truth == 7, truth > 0, SPACING).sum() == 9  # an absent structure: wherever it was judged


def test_lesions_are_counted_only_where_the_options_say_so():
    truth = np.zeros((4, 4, 4), np.uint8)
    assert "lesion_f1" not in {metric for _, metric, _ in segmentation_scores(truth, truth, SPACING, ONE)}
    check_scoring(ScoringOptions(lesions=["x"]), ONE)
    with pytest.raises(UserError, match="scoring.lesions: y is not scored here; choose from x"):
        check_scoring(ScoringOptions(lesions=["y"]), ONE)
