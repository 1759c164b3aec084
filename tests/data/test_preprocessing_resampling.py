"""Resampling against SimpleITK and closed forms; labels by their properties."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medaug.data.resampling import coarse_axis, resample_image, resample_label


def grid(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)


def itk_resample(volume, shape, interpolator):
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    zoom = np.array(volume.shape) / shape
    reference = sitk.Image([int(n) for n in shape], sitk.sitkFloat64)
    reference.SetSpacing(zoom.tolist())
    reference.SetOrigin(((zoom - 1) / 2).tolist())
    return sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), interpolator)).T


@pytest.mark.parametrize("shape", [(48, 40, 32), (30, 20, 17), (24, 50, 16)])
def test_refined_images_equal_simpleitks_cubic_splines(shape):
    volume = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(24, 20, 16)), 0.7)
    inner = tuple(
        slice(round(6 * new / old), -round(6 * new / old)) for new, old in zip(shape, volume.shape, strict=True)
    )
    expected = itk_resample(volume, shape, sitk.sitkBSpline)
    # Away from the border, beyond which the two continue the volume differently.
    np.testing.assert_allclose(resample_image(volume, shape)[inner], expected[inner], atol=2e-3)
    linear = itk_resample(volume, shape, sitk.sitkLinear)
    assert np.abs(linear - expected)[inner].max() > 0.05


@pytest.mark.parametrize("shape", [(48, 40, 32), (30, 20, 17), (12, 10, 8), (16, 20, 30)])
def test_a_ramp_stays_on_its_ramp(shape):
    old, gradient = np.array((24, 20, 16)), np.array([3.0, -2.0, 5.0])
    found = resample_image(grid(old) @ gradient, shape)
    expected = ((grid(shape) + 0.5) * old / shape - 0.5) @ gradient
    inner = tuple(slice(round(n / 4), -round(n / 4)) for n in shape)
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.05)


def test_coarsening_does_not_alias():
    """A grid three times coarser cannot represent stripes of two voxels: it must show grey, not broad stripes."""
    stripes = np.where(grid((48, 16, 16))[..., 0] % 4 < 2, 1.0, -1.0)
    assert np.abs(resample_image(stripes, (16, 16, 16))[2:-2]).max() < 0.35
    plain = ndimage.zoom(stripes, (1 / 3, 1, 1), order=3, grid_mode=True, mode="nearest")
    assert np.abs(plain[2:-2]).max() > 0.8


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 3), st.sampled_from([None, 0, 1, 2]))
def test_range_shape_and_type_are_kept(old, new, coarse):
    volume = np.random.default_rng(1).normal(size=old)
    found = resample_image(volume, new, coarse)
    assert found.shape == new and found.dtype == np.float64
    assert found.min() >= volume.min() and found.max() <= volume.max()
    assert old != new or found is volume


def test_a_constant_stays_constant():
    assert np.allclose(resample_image(np.full((5, 6, 7), -1000.0), (7, 3, 20)), -1000, atol=1e-9)


def test_across_thick_slices_interpolation_is_linear():
    volume = np.zeros((6, 6, 8))
    volume[:, :, 4] = 1
    found = resample_image(volume, (6, 6, 40), coarse=2)[3, 3]
    expected = np.interp((np.arange(40) + 0.5) / 5 - 0.5, np.arange(8), volume[3, 3])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert resample_image(volume, (6, 6, 40))[3, 3].max() > 0.99
    assert not np.allclose(resample_image(volume, (6, 6, 40))[3, 3], expected, atol=0.02)


def test_thick_slices_are_found_in_either_grid():
    assert coarse_axis((1, 1, 3), (1, 1, 1)) is None
    assert coarse_axis((1, 1, 3.1), (1, 1, 1)) == 2
    assert coarse_axis((1, 1, 1), (5, 1, 1)) == 0


labels = st.builds(
    lambda shape, values, density, seed: np.where(
        np.random.default_rng(seed).random(shape) < density,
        np.random.default_rng(seed + 1).choice(values, shape),
        0,
    ).astype(np.uint8),
    st.tuples(*[st.integers(2, 12)] * 3),
    st.lists(st.sampled_from([1, 2, 3, 7, 255]), min_size=1, max_size=4, unique=True),
    st.floats(0.01, 1),
    st.integers(0, 10_000),
)


@given(labels, st.tuples(*[st.integers(2, 20)] * 3))
@settings(max_examples=60)
def test_no_new_label_value_appears(label, shape):
    found = resample_label(label, shape)
    assert found.shape == shape and found.dtype == np.uint8
    assert set(np.unique(found)) <= set(np.unique(label)) | {0} - ({0} if 0 not in label else set())


@given(
    st.tuples(*[st.integers(6, 14)] * 3),
    st.tuples(*[st.integers(4, 24)] * 3),
    st.lists(st.sampled_from([1, 2, 255]), min_size=1, max_size=3, unique=True),
    st.integers(0, 10_000),
)
@settings(max_examples=60)
def test_a_lone_lesion_of_half_a_voxel_is_kept(old, new, values, seed):
    """Single voxels, one per class and far apart: the hardest lesions to keep."""
    rng = np.random.default_rng(seed)
    label = np.zeros(old, np.uint8)
    corners = rng.permutation([(0, 0, 0), (-1, -1, -1), (0, -1, 0)])
    for value, corner in zip(values, corners, strict=False):
        label[tuple(corner)] = value
    found = resample_label(label, new)
    if label.size / found.size <= 2:
        assert set(np.unique(found)) == set(np.unique(label))
        for value, corner in zip(values, corners, strict=False):
            place = (np.array(corner) % old + 0.5) * new / old
            assert np.abs(np.argwhere(found == value) + 0.5 - place).min(axis=0).max() <= max(1, *np.divide(new, old))


def test_a_lesion_of_less_than_half_a_voxel_is_not_blown_up():
    label = np.zeros((24, 24, 24), np.uint8)
    label[12, 12, 12] = 1  # a 27th
    assert not resample_label(label, (8, 8, 8)).any()
    label[11:13, 11:14, 11:14] = 1
    assert resample_label(label, (8, 8, 8)).sum() == 1


def test_a_thin_shell_keeps_its_volume():
    """An enhancing rim one voxel thick, which fills no coarse voxel to one half."""
    distance = np.linalg.norm(grid((30, 30, 30)) - 14.5, axis=-1)
    label = np.where(distance < 8, 1, np.where(distance < 9, 2, 0)).astype(np.uint8)
    found = resample_label(label, (8, 8, 8))
    expected = np.sum(label == 2) * found.size / label.size
    assert 0.3 * expected < np.sum(found == 2) < 3 * expected


def test_a_kept_component_never_takes_the_last_voxel_of_another_class():
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2, :2, :2] = 1
    label[1, 1, 1] = 2
    assert set(np.unique(resample_label(label, (4, 4, 2)))) == {0, 1, 2}
    # One coarse voxel cannot show both, and the larger was there first.
    assert set(np.unique(resample_label(label, (2, 2, 2)))) == {0, 1}


def test_the_ignore_class_is_a_class_like_any_other():
    label = np.zeros((12, 12, 12), np.uint8)
    label[:6] = 255
    label[6:9] = 1
    found = resample_label(label, (6, 6, 6))
    assert np.all(found[:3] == 255) and np.all(found[3:4] == 1) and np.all(found[5:] == 0)
