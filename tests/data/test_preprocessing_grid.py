"""The grid that is fitted: rules checked by hand-made cohorts, options that no cohort could satisfy."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medaug.data.geometry import filled
from medaug.data.grid import check_intensity, resampled_shape
from medaug.data.preprocessing import Preprocessing, fit_preprocessing
from medaug.errors import UserError
from medaug.imaging.reading import read_header
from medaug.options import DataOptions


def scan(spacing, shape=(40, 40, 40)):
    return shape, np.diag([*spacing, 1.0])


def fitted_spacing(spacings, **options):
    return fit_preprocessing([scan(s) for s in spacings], DataOptions(**options), (8,) * 3).spacing


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@given(
    st.lists(
        st.tuples(st.tuples(*[st.integers(8, 60)] * 3), st.tuples(*[st.floats(0.5, 3)] * 3)), min_size=1, max_size=4
    ),
    st.integers(8, 40),
    st.sampled_from(["auto", "never"]),
)
def test_fitted_grid_holds_every_scan_and_honours_max_side(axes, grids, max_side, resample):
    scans = []
    for shape, spacing in grids:
        affine = np.zeros((4, 4))
        for i, axis in enumerate(axes):
            affine[axis, i] = -spacing[i]
        scans.append((shape, affine + np.diag([0, 0, 0, 1])))
    fitted = fit_preprocessing(scans, DataOptions(max_side=max_side, resample=resample), (4,) * 3)
    order = np.argsort(axes)
    for shape, spacing in grids:
        sides = resampled_shape(np.array(shape)[order], np.array(spacing)[order], fitted.spacing)
        assert max(sides) <= max_side
        assert all(side <= model for side, model in zip(sides, fitted.shape, strict=True))
    assert all(side % 4 == 0 for side in fitted.shape)
    if resample == "never":
        assert (fitted.spacing is None) == (max(max(shape) for shape, _ in grids) <= max_side)


def test_scans_with_equal_voxel_sizes_keep_them():
    scans = [scan((1, 1, 1), (10, 11, 12)), scan((1.01, 1, 0.995), (20, 9, 8))]
    fitted = fit_preprocessing(scans, DataOptions(percentiles=[0, 100]), (8,) * 3)
    assert fitted == Preprocessing((24, 16, 16), None, (0.0, 100.0))


def test_scans_with_different_voxel_sizes_get_the_median():
    assert fitted_spacing([(1, 1, 1), (1, 1, 1.2), (0.8, 1, 1.5)]) == (1.0, 1.0, 1.2)
    assert fitted_spacing([(1, 1, 1), (1, 1, 1.2), (0.8, 1, 1.5)], resample="never") is None


def test_thick_slices_get_the_tenth_percentile_but_no_finer_than_in_plane():
    thick = [(0.7, 0.8, z) for z in (2.0, 3.0, 4.0, 5.0, 6.0)]
    assert fitted_spacing(thick) == pytest.approx((0.7, 0.8, np.percentile([2, 3, 4, 5, 6], 10)))
    mixed = [(0.7, 0.8, z) for z in (0.5, 0.5, 4.0, 5.0, 6.0)]
    assert fitted_spacing(mixed) == pytest.approx((0.7, 0.8, 0.8))


def test_a_given_voxel_size_is_used():
    assert fitted_spacing([(1, 1, 1), (2, 2, 2)], spacing=[1.5, 1.5, 3.0], resample="never") == (1.5, 1.5, 3.0)
    assert fit_preprocessing([scan((1, 1, 1))], DataOptions(spacing=[2, 2, 2]), (4,) * 3).shape == (20, 20, 20)


@pytest.mark.parametrize("shape", [(16, 24, 8), (15, 12, 1)])
def test_a_given_shape_is_used_even_if_not_divisible(shape):
    assert fit_preprocessing([scan((1, 1, 1))], DataOptions(shape=list(shape)), (8,) * 3).shape == shape


def test_the_model_space_follows_the_options():
    options = DataOptions(
        intensity="window", window=[-1000, 1000], zscore_clip=3, crop="body", bias_correction=True, percentiles=[1, 99]
    )
    fitted = asdict(fit_preprocessing([scan((1, 1, 1))], options, (8,) * 3))
    assert fitted == {
        "shape": (40, 40, 40),
        "spacing": None,
        "percentiles": (1.0, 99.0),
        "intensity": "window",
        "window": (-1000, 1000),
        "zscore_clip": 3,
        "crop": "body",
        "bias_correction": True,
    }


def test_a_window_must_be_given_to_be_used():
    with pytest.raises(UserError, match="data.window"):
        check_intensity(DataOptions(intensity="window"))
    check_intensity(DataOptions(intensity="window", window=[-1000, 1000]))
    check_intensity(DataOptions())


def test_hippocampi_keep_their_voxels(medaug_data):
    headers = [read_header(f) for f in sorted((medaug_data / "Task04_Hippocampus/imagesTr").glob("[!.]*.nii*"))]
    scans = [(header.shape, header.affine) for header in headers]
    fitted = fit_preprocessing(scans, DataOptions(shape=[40, 56, 40]), (8,) * 3)
    assert fitted == Preprocessing((40, 56, 40), None, (0.5, 99.5))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_no_slice_is_added_for_2d_networks(depths):
    scans = [scan((1, 1, 3), (13, 16, depth)) for depth in depths]
    assert fit_preprocessing(scans, DataOptions(), (8, 8, 1)).shape == (16, 16, max(depths))


@given(st.integers(1, 12), st.integers(1, 12))
def test_where_a_scan_lies_on_the_grid(scan_side, model_side):
    preprocessing = Preprocessing((2, 2, model_side), None, (0.0, 100.0))
    image = np.random.default_rng(0).uniform(1, 2, (1, 2, 2, scan_side)).astype(np.float32)
    image[..., 0, 0, 0] = 0  # the low limit, and the only voxel of the scan that becomes -1
    image[0, 1, 1, :] = 1.5
    made, placement = preprocessing.apply_image(image, np.eye(4))
    assert np.array_equal(
        made[0, 1, 1] != -1, [place in range(model_side)[filled(scan_side, model_side)] for place in range(model_side)]
    )
    assert placement.resampled[2] == scan_side
