"""The foreground of scans whose foreground is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medaug.imaging.body import body_mask, bounding_box
from medaug.imaging.reading import read_volume
from medaug.phantoms.head import make_subject

SHAPE = (48, 56, 40)


def ball(radius, centre=(0, 0, 0)):
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - (np.array(SHAPE) - 1) / 2
    return np.linalg.norm(index - centre, axis=-1) <= radius


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def head(noise, rng):
    """Scalp, dark skull, brain with dark ventricles, under the noise of a magnitude image."""
    signal = np.select([ball(4), ball(12), ball(14.5), ball(17)], [150, 500, 30, 800], 0)
    return np.hypot(signal + rng.normal(0, noise, SHAPE), rng.normal(0, noise, SHAPE)), ball(17)


def chest(rng):
    """Hounsfield units: a body with lungs cut off by the field of view, a table below it, padding around the field."""
    lungs = ball(7, (-8, 0, 0)) | ball(7, (8, 0, 0))
    lungs |= np.roll(lungs, 15, 2) | np.roll(lungs, -15, 2)
    body = np.broadcast_to(ball(20)[:, :, SHAPE[2] // 2, None], SHAPE)
    volume = np.where(body, np.where(lungs, -850, 40), -1000) + rng.normal(0, 15, SHAPE)
    volume[:, 52:53] = 300
    field = np.hypot(*np.meshgrid(np.arange(48) - 23.5, np.arange(56) - 27.5, indexing="ij")) < 26
    return np.where(field[..., None], volume.clip(-1024), -1024).astype(np.int16), body


@pytest.mark.parametrize("noise", [2, 20, 60])
def test_a_noisy_head_is_found_completely(noise):
    volume, truth = head(noise, np.random.default_rng(0))
    assert dice(body_mask(volume), truth) > 0.95


def test_a_ct_is_its_body_with_lungs_and_without_the_table():
    volume, truth = chest(np.random.default_rng(1))
    mask = body_mask(volume)
    assert dice(mask, truth) > 0.97
    assert not mask[:, 52].any()


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["T1", "T2", "FLAIR"])
def test_a_stripped_brain_is_every_voxel_that_is_not_zero(modality):
    volume = make_subject(0, 0, (64, 64, 64)).images[modality]
    truth = ndimage.binary_fill_holes(volume > 0)
    assert dice(body_mask(volume), truth) > 0.97


def test_a_normalised_brain_has_values_on_both_sides_of_its_background():
    rng = np.random.default_rng(2)
    volume = np.where(ball(15), rng.normal(0, 1, SHAPE), 0)
    assert dice(body_mask(volume), ball(15)) > 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_orientation_and_units_do_not_matter(axis):
    volume, _ = head(20, np.random.default_rng(3))
    mask = body_mask(volume)
    assert dice(body_mask(np.flip(volume, axis).astype(np.float32) * 7 - 1000), np.flip(mask, axis)) > 0.999


def test_two_legs_are_both_kept():
    legs = ball(9, (-11, 0, 0)) | ball(8, (11, 0, 0))
    mask = body_mask(np.where(legs, 60, -1000) + np.random.default_rng(4).normal(0, 10, SHAPE))
    assert dice(mask, legs) > 0.95


@pytest.mark.parametrize("volume", [np.zeros(SHAPE), np.full((1, 1, 1), 7, np.int16), np.full(SHAPE, -1000.0)])
def test_a_constant_volume_is_all_foreground(volume):
    assert body_mask(volume).all() and body_mask(volume).shape == volume.shape


@pytest.mark.slow
def test_a_volume_without_air_is_all_foreground(medaug_data):
    files = sorted((medaug_data / "Task04_Hippocampus" / "imagesTr").glob("[!.]*.nii*"))
    assert len(files) == 199
    assert all(body_mask(read_volume(file).array).all() for file in files)


def thigh(rng):
    """T1-weighted MR: fat three times as bright as muscle and tumour, a dark bone, and air, cropped on two sides."""
    signal = np.select([ball(3, (-8, 0, 0)), ball(7, (6, 4, 0)), ball(16), ball(20)], [30, 270, 300, 900], 0)
    return np.hypot(signal + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE))[:38], ball(20)[:38]


def test_dark_tissue_in_bright_fat_is_body():
    volume, truth = thigh(np.random.default_rng(5))
    assert dice(body_mask(volume), truth) > 0.97


@pytest.mark.parametrize("hottest", [2, 20, 200])
def test_uptake_does_not_hide_the_body_in_pet(hottest):
    rng = np.random.default_rng(6)
    uptake = np.select([ball(5, (6, 4, 0)), ball(18)], [hottest, 0.5], 0)
    volume = ndimage.gaussian_filter(uptake + ball(18) * rng.normal(0, 0.15, SHAPE), 1).clip(0)
    volume += np.abs(rng.normal(0, 0.004, SHAPE))
    assert dice(body_mask(volume), ball(18)) > 0.9
    assert body_mask(volume)[ball(5, (6, 4, 0))].all()


def padded(volume, value, axes=(0, 1)):
    """A volume with one value outside a circle of its first two axes, and a mask of the voxels inside."""
    grid = np.meshgrid(*(np.linspace(-1, 1, volume.shape[axis]) for axis in axes), indexing="ij")
    inside = np.broadcast_to((np.hypot(*grid) < 1)[:, :, None], volume.shape)
    return np.where(inside, volume, value), inside


@pytest.mark.parametrize("value", [-32768, -3024, -2000, -1200, -1024, -1000])
@pytest.mark.parametrize("offset", [0, 1024])
@pytest.mark.parametrize("slices", [40, 1])
def test_padding_outside_the_circle_of_a_ct_is_not_air(value, offset, slices):
    volume, body = chest(np.random.default_rng(7))
    volume, inside = padded(volume[:, :, :slices].astype(np.float32) + offset, value + offset)
    assert dice(body_mask(volume), body[:, :, :slices] & inside) > 0.97


def test_soft_tissue_is_not_air_where_the_background_is_masked():
    """Soft tissue as uniform as air and darker than bone, but with no gap between their values."""
    rng = np.random.default_rng(8)
    values = np.select([ball(7), ball(9), ball(18)], [1060, 1060 + rng.gamma(1, 250, SHAPE), 1040], 0)
    volume = np.where(ball(18), values + rng.normal(0, 12, SHAPE), 0)
    assert dice(body_mask(volume), ball(18)) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mr_t1", "ct", "pet_suv"])
def test_real_tumours_are_in_the_body_and_dark_corners_are_not(medaug_data, kind):
    files = sorted((medaug_data / "STS" / kind / "images").glob("*.nii.gz"))
    if not files:
        pytest.skip("no soft-tissue sarcomas in MEDAUG_DATA")
    seen = 0
    for file in files:
        volume, tumour = (read_volume(path).array for path in (file, file.parents[1] / "labels" / file.name))
        mask = body_mask(volume)
        assert mask[tumour > 0].mean() > 0.98, file.name
        seen += mask[darkest_corner(volume)].mean() < 0.5
    assert seen == len(files)


def darkest_corner(volume):
    """The darkest of the eight corners, a fifth as long as the volume."""
    sides = [(slice(0, side // 5), slice(side - side // 5, side)) for side in volume.shape]
    return min(itertools.product(*sides), key=lambda where: volume[where].mean())


@pytest.mark.slow
def test_labels_of_a_ct_that_is_not_in_hounsfield_units_lie_in_the_body(medaug_data):
    files = sorted((medaug_data / "OpenKBP" / "images").glob("*.nii.gz"))
    if not files:
        pytest.skip("no OpenKBP in MEDAUG_DATA")
    for file in files:
        volume, label = (read_volume(path).array for path in (file, file.parents[1] / "labels" / file.name))
        mask = body_mask(volume)
        assert mask[label > 0].mean() > 0.95 and mask.mean() < 0.4, file.name


def test_the_bounding_box_is_the_smallest():
    mask = np.zeros(SHAPE, bool)
    mask[3, 7, 39] = mask[10, 5, 0] = True
    assert bounding_box(mask) == ((3, 11), (5, 8), (0, 40))
