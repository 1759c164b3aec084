"""Model space against nibabel, SimpleITK and closed forms, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medaug.data.preprocessing import BACKGROUND, Preprocessing
from medaug.imaging.reading import read_label, read_volume

ALL = (0.0, 100.0)  # percentiles that clip nothing


def oriented_affine(axes, flips, spacing=(1.0, 1.0, 1.0)):
    """An affine whose array axis i runs along world axis axes[i], reversed if flips[i]."""
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
    assert np.array_equal(Preprocessing(closest.shape, None, ALL).apply_label(label, placement), expected)


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
    assert np.array_equal(roomy.invert_label(roomy.apply_label(label, placement), placement), label)


@given(axes, flips, st.tuples(*[st.integers(4, 9)] * 3), st.tuples(*[st.integers(2, 9)] * 3))
def test_crop_loses_only_voxels_outside_the_grid(axes, flips, shape, model_shape):
    rng = np.random.default_rng(2)
    image = rng.integers(1, 100, (1, *shape)).astype(np.float32)
    label = rng.integers(1, 4, shape).astype(np.uint8)
    affine = oriented_affine(axes, flips)
    small = Preprocessing(model_shape, None, ALL)
    model, placement = small.apply_image(image, affine)
    placed = small.apply_label(label, placement)
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


def model_affine(affine, placement, model_shape):
    """World coordinates of the model's voxels, computed from the placement."""
    host = nib.Nifti1Image(np.zeros(placement.shape, np.uint8), affine)
    matrix = nib.as_closest_canonical(host).affine
    shift, zoom, centre = np.eye(4), np.eye(4), np.eye(4)
    shift[:3, 3] = [start for start, _ in placement.kept]
    old = np.array([stop - start for start, stop in placement.kept])
    np.fill_diagonal(zoom, [*(old / placement.resampled), 1])
    zoom[:3, 3] = (old / placement.resampled - 1) / 2  # outer faces stay where they are
    for axis, (new, model) in enumerate(zip(placement.resampled, model_shape, strict=True)):
        centre[axis, 3] = (new - model) // 2 if new > model else -((model - new) // 2)
    return matrix @ shift @ zoom @ centre


def centroid(volume, affine):
    places = np.argwhere(volume > volume.max() / 10)
    weights = volume[tuple(places.T)]
    return affine[:3, :3] @ (weights @ places / weights.sum()) + affine[:3, 3]


@pytest.mark.slow
@given(
    axes,
    flips,
    st.sampled_from([None, (1.5, 1.5, 1.5), (0.8, 1.1, 1.3), (1.0, 1.0, 4.5)]),
    st.sampled_from(["none", "body"]),
    st.sampled_from([(24, 24, 24), (40, 16, 32)]),
)
@settings(max_examples=25)
def test_a_marker_keeps_its_world_coordinates(axes, flips, spacing, crop, model_shape):
    affine = oriented_affine(axes, flips, (1.0, 1.2, 1.4))
    affine[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.05, 0.08) @ affine[:3, :3]
    shape, place = (30, 26, 22), np.array([17.3, 12.2, 9.6])
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    image = (1000 * np.exp(-np.sum((index - place) ** 2, axis=-1) / 8)).astype(np.float32)
    world = affine[:3, :3] @ place + affine[:3, 3]
    space = Preprocessing(model_shape, spacing, ALL, crop=crop)
    model, placement = space.apply_image(image[None], affine)
    matrix = model_affine(affine, placement, model_shape)
    found = centroid(model[0] + 1, matrix)
    assert np.all(np.abs(np.linalg.solve(matrix[:3, :3], found - world)) < 0.5)
    restored = space.invert_image(model, placement)[0]
    back = np.linalg.solve(affine[:3, :3], centroid(restored - placement.low[0], affine) - world)
    assert np.all(np.abs(back) < 0.5)
    # A label is placed like its image.
    label = (image > 300).astype(np.uint8)
    placed = space.apply_label(label, placement)
    assert np.all(np.abs(np.linalg.solve(matrix[:3, :3], centroid(placed.astype(float), matrix) - world)) < 0.5)


@pytest.mark.parametrize("crop", ["none", "body"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.1, 0.7)])
@pytest.mark.parametrize("model_shape", [(8, 24, 12), (40, 40, 40)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_beyond_the_region_is_background_and_never_the_host(crop, spacing, model_shape, flips):
    rng = np.random.default_rng(3)
    shape = (24, 28, 20)
    image = np.full(shape, -1000, np.float32)
    image[6:20, 5:25, 4:15] = rng.normal(40, 5, (14, 20, 11))
    image += rng.normal(0, 1, shape)
    affine = oriented_affine((2, 0, 1), flips)
    space = Preprocessing(model_shape, spacing, ALL, crop=crop)
    model, placement = space.apply_image(image[None], affine)
    region = tuple(slice(start, stop) for start, stop in space.region(placement))
    covered = np.zeros(shape, bool)
    covered[region] = True
    restored = space.invert_image(np.ones_like(model), placement)[0]
    np.testing.assert_allclose(restored[covered], placement.high[0], rtol=1e-5)
    assert np.all(restored[~covered] == np.float32(placement.low[0]))
    assert np.array_equal(space.invert_label(np.ones(model_shape, np.uint8), placement) == 1, covered)
    if crop == "body" and model_shape == (40, 40, 40):
        assert region == (slice(3, 23), slice(2, 28), slice(1, 18))  # three voxels of air around the body
    if model_shape == (40, 40, 40) and crop == "none":
        assert covered.all()


@given(
    st.sampled_from([np.int16, np.uint8, np.uint16, np.int32, np.float32]),
    axes,
    flips,
    sides,
    st.sampled_from(["percentile", "window", "zscore"]),
    st.integers(0, 2**32 - 1),
)
def test_every_voxel_type_comes_back(dtype, axes, flips, shape, intensity, seed):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        image = rng.normal(300, 1000, (1, *shape)).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        image = rng.integers(max(limits.min, -(2**22)), min(limits.max, 2**22), (1, *shape), endpoint=True)
    window = (float(image.min()) - 1, float(image.max()) + 1)
    space = Preprocessing((9, 9, 9), None, ALL, intensity, window, zscore_clip=30.0)
    model, placement = space.apply_image(image.astype(np.float32), oriented_affine(axes, flips))
    restored = space.invert_image(model, placement)
    clear = (image >= placement.low[0]) & (image <= placement.high[0])
    assert clear.all() or intensity == "zscore"
    span = placement.high[0] - placement.low[0]
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(restored[clear], image[clear], atol=1e-6 * span)
    elif span < 2**23:  # values that float32 in [-1, 1] can distinguish
        assert np.array_equal(np.rint(restored[clear]), image[clear])


def test_zscore_uses_only_the_foreground():
    rng = np.random.default_rng(0)
    image = np.zeros((32, 32, 32), np.float32)
    image[8:24, 8:24, 8:24] = rng.normal(500, 20, (16, 16, 16))
    space = Preprocessing((32, 32, 32), None, intensity="zscore", zscore_clip=3.0)
    model, placement = space.apply_image(image[None], np.eye(4))
    assert (placement.low[0], placement.high[0]) == pytest.approx((440, 560), abs=5)
    assert np.all(model[0][image == 0] == BACKGROUND)


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
    _, placement = half.apply_image(label[None].astype(np.float32), affine)
    small = half.apply_label(label, placement)
    restored = half.invert_label(small, placement)
    assert set(np.unique(small)) == set(np.unique(restored)) == {0, 1, 3}
    assert restored.shape == label.shape and restored.dtype == np.uint8
    # As good as the majority of each cube of two voxels, which is the best possible.
    cubes = label.reshape(16, 2, 14, 2, 12, 2).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8)
    majority = np.array([np.bincount(cube).argmax() for cube in cubes]).reshape(16, 14, 12)
    best = majority.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    for value in (1, 3):
        assert dice(restored == value, label == value) > dice(best == value, label == value) - 0.05


@pytest.mark.parametrize("spacing", [None, (1.5, 2.0, 0.75)])
@pytest.mark.parametrize("window", [None, (-1000.0, 1000.0)])
def test_plain_values_round_trip(spacing, window):
    preprocessing = Preprocessing((8, 16, 24), spacing, (0.5, 99.5), "window", window, 3.0, "body", True)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_a_checkpoint_of_the_first_release_is_read():
    values = {"shape": [8, 8, 16], "spacing": [1.0, 1.5, 2.0], "percentiles": [1.0, 99.0]}
    assert Preprocessing.from_dict(values) == Preprocessing((8, 8, 16), (1.0, 1.5, 2.0), (1.0, 99.0))


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
        placed = preprocessing.apply_label(label.array.astype(np.uint8), placement)
        back = preprocessing.invert_label(placed, placement)
        assert np.array_equal(back, label.array)


@pytest.mark.slow
def test_inverse_error_lies_below_that_of_plain_interpolation(medaug_data: Path):
    """Resampling to 1.5 mm and back, compared with scipy's cubic splines between the same grids."""
    files = sorted((medaug_data / "Task04_Hippocampus" / "imagesTr").glob("[!.]*.nii*"))[:8]
    ours, plain = [], []
    for file in files:
        image = read_volume(file)
        host = image.array.astype(np.float32)
        space = Preprocessing((64, 64, 64), (1.5, 1.5, 1.5), ALL)
        model, placement = space.apply_image(host[None], image.affine)
        assert placement.resampled != host.shape
        ours.append(np.sqrt(np.mean((space.invert_image(model, placement)[0] - host) ** 2)) / host.std())
        zoom = np.array(placement.resampled) / host.shape
        small = ndimage.zoom(host, zoom, order=3, mode="nearest", grid_mode=True)
        again = ndimage.zoom(small, np.array(host.shape) / small.shape, order=3, mode="nearest", grid_mode=True)
        plain.append(np.sqrt(np.mean((again - host) ** 2)) / host.std())
    assert np.mean(ours) <= np.mean(plain)
    assert np.max(np.array(ours) / plain) < 1.05
