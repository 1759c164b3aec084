"""Model space against nibabel, SimpleITK and closed forms, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug.data.preprocessing import BACKGROUND, Preprocessing, fit_preprocessing
from medaug.errors import UserError
from medaug.imaging.nifti import read_label, read_volume

ALL = (0.0, 100.0)  # percentiles that clip nothing


def oriented_affine(axes, flips, spacing=(1.0, 1.0, 1.0)):
    """An affine whose array axis i runs along world axis axes[i], backwards where flips[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for i, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[axis, i] = -spacing[i] if flip else spacing[i]
    affine[:3, 3] = (7, -3, 11)
    return affine


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


axes = st.permutations([0, 1, 2])
flips = st.tuples(st.booleans(), st.booleans(), st.booleans())
sides = st.tuples(*[st.integers(1, 9)] * 3)


@given(axes, flips, sides)
def test_orientation_is_nibabels(axes, flips, shape):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    affine = oriented_affine(axes, flips)
    closest = nib.as_closest_canonical(nib.Nifti1Image(image, affine)).get_fdata()
    model, placement = Preprocessing(closest.shape, None, ALL).apply_image(image[None], affine)
    span = max(np.ptp(closest), 1e-6)
    np.testing.assert_allclose(model[0], 2 * (closest - closest.min()) / span - 1, atol=1e-5)
    assert placement.oriented == closest.shape
    label = (image > 0).astype(np.uint8)
    expected = nib.as_closest_canonical(nib.Nifti1Image(label, affine)).dataobj
    assert np.array_equal(Preprocessing(closest.shape, None, ALL).apply_label(label, affine), expected)


@given(axes, flips, sides, st.tuples(*[st.integers(0, 5)] * 3))
def test_inverse_is_exact_where_nothing_was_resampled_or_clipped(axes, flips, shape, extra):
    rng = np.random.default_rng(1)
    image = rng.integers(-1000, 3000, (2, *shape)).astype(np.float32)
    label = rng.integers(0, 4, shape).astype(np.uint8)
    affine = oriented_affine(axes, flips, (1.0, 2.0, 0.5))
    roomy = Preprocessing(tuple(int(v) for v in np.add(np.array(shape)[np.argsort(axes)], extra)), None, ALL)
    model, placement = roomy.apply_image(image, affine)
    assert model.shape == (2, *roomy.shape) and model.dtype == np.float32
    assert model.min() >= -1 and model.max() <= 1
    restored = roomy.invert_image(model, placement)
    assert restored.shape == image.shape
    assert np.array_equal(np.round(restored), image)
    assert np.array_equal(roomy.invert_label(roomy.apply_label(label, affine), placement), label)


@given(axes, flips, st.tuples(*[st.integers(4, 9)] * 3), st.tuples(*[st.integers(2, 9)] * 3))
def test_crop_loses_only_what_lies_outside(axes, flips, shape, model_shape):
    rng = np.random.default_rng(2)
    image = rng.integers(1, 100, (1, *shape)).astype(np.float32)
    label = rng.integers(1, 4, shape).astype(np.uint8)
    affine = oriented_affine(axes, flips)
    small = Preprocessing(model_shape, None, ALL)
    model, placement = small.apply_image(image, affine)
    placed = small.apply_label(label, affine)
    assert np.all(model[0][placed == 0] == BACKGROUND)
    kept = small.invert_label(placed, placement) > 0
    assert kept.sum() == np.prod(np.minimum(placement.oriented, model_shape))
    restored = np.round(small.invert_image(model, placement))
    assert np.array_equal(restored[0][kept], image[0][kept])
    assert np.all(restored[0][~kept] == image.min())
    assert np.array_equal(small.invert_label(placed, placement)[kept], label[kept])


def test_percentiles_clip_and_a_constant_volume_stays_finite():
    image = np.arange(1000, dtype=np.float32).reshape(1, 10, 10, 10)
    preprocessing = Preprocessing((10, 10, 10), None, (10.0, 90.0))
    model, placement = preprocessing.apply_image(image, np.eye(4))
    low, high = np.percentile(image, (10, 90))
    assert (placement.low[0], placement.high[0]) == pytest.approx((low, high))
    np.testing.assert_allclose(preprocessing.invert_image(model, placement), np.clip(image, low, high), atol=1e-3)
    flat, placement = preprocessing.apply_image(np.full_like(image, 4000), np.eye(4))
    assert np.isfinite(flat).all()
    np.testing.assert_allclose(preprocessing.invert_image(flat, placement), 4000, atol=1e-3)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.5, 2.0])
def test_a_ramp_in_millimetres_stays_on_its_ramp(factor):
    """Independent geometry: SimpleITK resamples the same scan to the grid that the field of view prescribes."""
    shape, gradient = (24, 20, 16), np.array([3.0, -2.0, 5.0])
    affine = oriented_affine((0, 1, 2), (False, False, False), (1.0, 1.25, 2.0))
    spacing = np.array([1.0, 1.25, 2.0])
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    ramp = ((index * spacing) @ gradient).astype(np.float32)
    preprocessing = Preprocessing((8, 8, 8), tuple(spacing * factor), ALL)
    resampled = preprocessing.resampled_shape(shape, affine)
    preprocessing = Preprocessing(resampled, tuple(spacing * factor), ALL)
    model, placement = preprocessing.apply_image(ramp[None], affine)
    found = placement.low[0] + (model[0] + 1) / 2 * (placement.high[0] - placement.low[0])

    new = spacing * np.array(shape) / np.array(resampled)
    first = (new - spacing) / 2  # both grids fill one field of view
    inner = tuple(slice(2, -2) for _ in range(3))
    grid = np.stack(np.meshgrid(*map(np.arange, resampled), indexing="ij"), axis=-1)
    np.testing.assert_allclose(found[inner], ((first + grid * new) @ gradient)[inner], atol=0.05)

    itk = sitk.GetImageFromArray(np.ascontiguousarray(ramp.T))
    itk.SetSpacing(spacing.tolist())
    reference = sitk.Image([int(n) for n in resampled], sitk.sitkFloat32)
    reference.SetSpacing(new.tolist())
    reference.SetOrigin(first.tolist())
    expected = sitk.GetArrayFromImage(sitk.Resample(itk, reference, sitk.Transform(), sitk.sitkLinear)).T
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.05)


def ball(shape, radius):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - (np.array(shape) - 1) / 2
    return np.linalg.norm(index, axis=-1) <= radius


@given(axes, flips)
@settings(max_examples=10)
def test_labels_survive_coarsening_by_two(axes, flips):
    label = np.zeros((32, 28, 24), np.uint8)
    label[ball(label.shape, 10)] = 3
    label[ball(label.shape, 6)] = 1
    affine = oriented_affine(axes, flips)
    oriented = np.array(label.shape)[np.argsort(axes)]
    half = Preprocessing(tuple(int(n) // 2 for n in oriented), (2.0, 2.0, 2.0), ALL)
    small = half.apply_label(label, affine)
    _, placement = half.apply_image(label[None].astype(np.float32), affine)
    restored = half.invert_label(small, placement)
    assert set(np.unique(small)) == set(np.unique(restored)) == {0, 1, 3}
    assert restored.shape == label.shape and restored.dtype == np.uint8
    # As good as the best that cubes of two voxels can do: the majority of each cube.
    cubes = label.reshape(16, 2, 14, 2, 12, 2).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8)
    majority = np.array([np.bincount(cube).argmax() for cube in cubes]).reshape(16, 14, 12)
    best = majority.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    for value in (1, 3):
        assert dice(restored == value, label == value) > dice(best == value, label == value) - 0.05


@given(
    st.lists(
        st.tuples(st.tuples(*[st.integers(8, 60)] * 3), st.tuples(*[st.floats(0.5, 3)] * 3)), min_size=1, max_size=4
    ),
    st.integers(8, 40),
    axes,
)
def test_fitted_grid_holds_every_scan_and_honours_max_side(grids, max_side, axes):
    grids = [(shape, oriented_affine(axes, (True, False, True), spacing)) for shape, spacing in grids]
    fitted = fit_preprocessing(grids, shape=None, max_side=max_side, multiple=4, percentiles=(0.5, 99.5))
    for shape, affine in grids:
        oriented = tuple(np.array(shape)[np.argsort(axes)])
        resampled = fitted.resampled_shape(oriented, affine)
        assert max(resampled) <= max_side
        assert all(r <= s for r, s in zip(resampled, fitted.shape, strict=True))
    assert all(side % 4 == 0 for side in fitted.shape)
    assert (fitted.spacing is None) == (max(max(shape) for shape, _ in grids) <= max_side)


def test_without_max_side_every_scan_keeps_its_voxels():
    grids = [((10, 11, 12), np.eye(4)), ((20, 9, 8), np.diag([2.0, 2.0, 2.0, 1.0]))]
    fitted = fit_preprocessing(grids, shape=None, max_side=None, multiple=8, percentiles=(0, 100))
    assert fitted == Preprocessing((24, 16, 16), None, (0.0, 100.0))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"shape": [16, 12, 16]}, "multiple of 8"),
        ({"percentiles": (99, 1)}, "percentiles"),
        ({"percentiles": (0, 101)}, "percentiles"),
    ],
)
def test_impossible_grids_are_refused(changed, named):
    options = {"shape": None, "max_side": None, "multiple": 8, "percentiles": (0, 100)} | changed
    with pytest.raises(UserError, match=named) as caught:
        fit_preprocessing([((10, 10, 10), np.eye(4))], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [None, (1.5, 2.0, 0.75)])
def test_plain_values_round_trip(spacing):
    preprocessing = Preprocessing((8, 16, 24), spacing, (0.5, 99.5))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_real_volumes_come_back_voxel_for_voxel(medaug_data: Path):
    folder = medaug_data / "Task04_Hippocampus"
    files = sorted((folder / "labelsTr").glob("[!.]*.nii*"))[:4]
    assert files
    preprocessing = Preprocessing((64, 64, 64), None, (0.5, 99.5))
    for file in files:
        image, label = read_volume(folder / "imagesTr" / file.name), read_label(file)
        model, placement = preprocessing.apply_image(image.array[None].astype(np.float32), image.affine)
        restored = np.round(preprocessing.invert_image(model, placement)[0])
        clear = (image.array >= placement.low[0]) & (image.array <= placement.high[0])
        assert clear.mean() > 0.98
        assert np.array_equal(restored[clear], np.round(image.array[clear]))
        back = preprocessing.invert_label(
            preprocessing.apply_label(label.array.astype(np.uint8), label.affine), placement
        )
        assert np.array_equal(back, label.array)
