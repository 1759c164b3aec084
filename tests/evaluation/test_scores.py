"""Dice and HD95 against independent libraries, and the conventions for empty masks."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.evaluation.scores import dice, hd95, mean_foreground_dice, segmentation_scores
from medaug.options import ScoringOptions

SPACING = (0.8, 1.0, 2.5)
SCHEMA = LabelSchema(((0, "background"), (1, "one"), (2, "two")))
ONE = LabelSchema(((0, "background"), (1, "x")))
SEEDS = st.integers(0, 10_000)


def _blobs(seed, num_classes=3, shape=(13, 11, 9)):
    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(num_classes)])
    smooth[0] += 0.03
    return smooth.argmax(0).astype(np.uint8)


def _surface_distances_by_brute_force(p, t):
    points = [np.argwhere(m & ~binary_erosion(m)) * SPACING for m in (p, t)]
    distance = cdist(*points)
    return distance.min(1), distance.min(0)


@pytest.mark.slow
@settings(max_examples=25)
@given(SEEDS)
def test_dice_equals_monai_and_simpleitk(seed):
    a, b = _blobs(seed), _blobs(seed + 1)
    scores = {(name, metric): value for name, metric, value in segmentation_scores(a, b, SPACING, SCHEMA)}
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(sitk.GetImageFromArray(a), sitk.GetImageFromArray(b))
    one_hot = [torch.stack([torch.from_numpy(x == i) for i in range(3)])[None].float() for x in (a, b)]
    monai = compute_dice(*one_hot, include_background=False)[0]
    for index, name in enumerate(("one", "two"), start=1):
        assert scores[name, "dice"] == pytest.approx(overlap.GetDiceCoefficient(index), abs=1e-12)
        assert scores[name, "dice"] == pytest.approx(float(monai[index - 1]), abs=1e-6)
    assert mean_foreground_dice(a, b, SCHEMA) == pytest.approx(float(monai.mean()), abs=1e-6)


@pytest.mark.slow
@settings(max_examples=25)
@given(SEEDS)
def test_hd95_equals_brute_force_over_all_surface_voxels(seed):
    p, t = _blobs(seed) == 1, _blobs(seed + 1) == 1
    expected = max(np.percentile(d, 95) for d in _surface_distances_by_brute_force(p, t))
    assert hd95(p, t, SPACING) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@settings(max_examples=15)
@given(SEEDS)
def test_hd95_equals_simpleitk_contours_and_distance_maps(seed):
    images = [sitk.GetImageFromArray((np.pad(_blobs(s), 1) == 1).astype(np.uint8)) for s in (seed, seed + 1)]
    contours = []
    for image in images:
        image.SetSpacing(SPACING[::-1])  # arrays go in with their first axis as SimpleITK's last
        contours.append(sitk.LabelContour(image, fullyConnected=False))
    directed = []
    for source, target in (contours, contours[::-1]):
        distance = sitk.SignedMaurerDistanceMap(target, squaredDistance=False, useImageSpacing=True)
        from_source = sitk.GetArrayFromImage(distance)[sitk.GetArrayFromImage(source) > 0]
        directed.append(np.percentile(np.abs(from_source), 95))
    p, t = _blobs(seed) == 1, _blobs(seed + 1) == 1
    assert hd95(p, t, SPACING) == pytest.approx(max(directed), rel=1e-5)


def test_a_box_shifted_by_two_voxels_is_the_shift_apart():
    p = np.zeros((20, 10, 10), bool)
    p[5:9, 3:7, 3:7] = True
    t = np.roll(p, 2, axis=0)
    assert dice(p, t) == pytest.approx(0.5)
    assert hd95(p, t, SPACING) == pytest.approx(2 * SPACING[0])
    assert hd95(p, p, SPACING) == 0


def test_empty_masks_are_scored_and_never_dropped():
    empty, full = np.zeros((4, 6, 8), np.uint8), np.zeros((4, 6, 8), np.uint8)
    full[1:3, 2, 2] = 1
    diagonal = np.sqrt((4 * 0.8) ** 2 + (6 * 1.0) ** 2 + (8 * 2.5) ** 2)
    options = ScoringOptions(lesions=["x"])
    scores = dict(row[1:] for row in segmentation_scores(empty, empty, SPACING, ONE, options))
    perfect = {"dice": 1.0, "hd95": 0.0, "nsd": 1.0, "volume_error": 0.0, "lesion_f1": 1.0, "lesion_sensitivity": 1.0}
    assert scores == perfect
    for pair, error, sensitivity in (((empty, full), -200.0, 0.0), ((full, empty), 200.0, 1.0)):
        scores = dict(row[1:] for row in segmentation_scores(*pair, SPACING, ONE, options))
        worst = {"dice": 0.0, "hd95": pytest.approx(diagonal), "nsd": 0.0, "volume_error": error, "lesion_f1": 0.0}
        assert scores == worst | {"lesion_sensitivity": sensitivity}


def test_masks_on_different_grids_are_refused():
    with pytest.raises(ValueError, match="different grids"):
        segmentation_scores(np.zeros((1, 4, 4)), np.zeros((4, 4, 4)), SPACING, ONE)
    with pytest.raises(ValueError, match="different grids"):
        mean_foreground_dice(np.zeros((1, 4, 4)), np.zeros((4, 4, 4)), ONE)


@pytest.mark.slow
@settings(max_examples=15)
@given(SEEDS)
def test_ignored_voxels_count_in_neither_mask(seed):
    prediction, truth = _blobs(seed), _blobs(seed + 1)
    ignored = _blobs(seed + 2) == 1
    blind = np.where(ignored, IGNORE, truth)
    for index, name in ((1, "one"), (2, "two")):
        scores = {(n, m): v for n, m, v in segmentation_scores(prediction, blind, SPACING, SCHEMA)}
        p, t = (prediction == index) & ~ignored, (truth == index) & ~ignored
        assert scores[name, "dice"] == pytest.approx(dice(p, t))
        assert scores[name, "hd95"] == pytest.approx(hd95(p, t, SPACING))
    other = np.where(ignored, (prediction + 1) % 3, prediction)
    assert mean_foreground_dice(other, blind, SCHEMA) == mean_foreground_dice(prediction, blind, SCHEMA)


@pytest.mark.slow
@settings(max_examples=15)
@given(SEEDS)
def test_regions_are_scored_in_place_of_the_classes(seed):
    prediction, truth = _blobs(seed), _blobs(seed + 1)
    schema = LabelSchema(SCHEMA.labels, regions=(("both", (1, 2)), ("inner", (2,))))
    rows = segmentation_scores(prediction, truth, SPACING, schema)
    rows = [row for row in rows if row[1] in ("dice", "hd95")]
    assert [row[:2] for row in rows] == [(n, m) for n in ("both", "inner") for m in ("dice", "hd95")]
    masks = ((prediction > 0, truth > 0), (prediction == 2, truth == 2))
    assert [row[2] for row in rows[::2]] == [dice(*pair) for pair in masks]
    assert [row[2] for row in rows[1::2]] == [hd95(*pair, SPACING) for pair in masks]
    assert mean_foreground_dice(prediction, truth, schema) == np.mean([dice(*pair) for pair in masks])
