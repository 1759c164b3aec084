"""The foreground of scans whose foreground is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medaug.imaging.body import body_mask, bounding_box
from medaug.imaging.phantom import make_subject
from medaug.imaging.reading import read_volume

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
    """Hounsfield units: a body whose lungs leave the field of view, a table below it, padding round the field."""
    lungs = ball(7, (-8, 0, 0)) | ball(7, (8, 0, 0))
    lungs |= np.roll(lungs, 15, 2) | np.roll(lungs, -15, 2)
    body = np.broadcast_to(ball(20)[:, :, SHAPE[2] // 2, None], SHAPE)
    volume = np.where(body, np.where(lungs, -850, 40), -1000) + rng.normal(0, 15, SHAPE)
    volume[:, 52:53] = 300
    field = np.hypot(*np.meshgrid(np.arange(48) - 23.5, np.arange(56) - 27.5, indexing="ij")) < 26
    return np.where(field[..., None], volume.clip(-1024), -1024).astype(np.int16), body


@pytest.mark.parametrize("noise", [2, 20, 60])
def test_a_noisy_head_is_found_whole(noise):
    volume, truth = head(noise, np.random.default_rng(0))
    assert dice(body_mask(volume), truth) > 0.95


def test_a_ct_is_its_body_with_lungs_and_without_the_table():
    volume, truth = chest(np.random.default_rng(1))
    mask = body_mask(volume)
    assert dice(mask, truth) > 0.97
    assert not mask[:, 52].any()


@pytest.mark.parametrize("modality", ["T1", "T2", "FLAIR"])
def test_a_stripped_brain_is_every_voxel_that_is_not_zero(modality):
    volume = make_subject(0, 0, (64, 64, 64)).images[modality]
    truth = ndimage.binary_fill_holes(volume > 0)
    assert dice(body_mask(volume), truth) > 0.97


def test_a_normalised_brain_lies_on_both_sides_of_its_background():
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


def test_tissue_throughout_has_no_false_border(medaug_data):
    files = sorted((medaug_data / "Task04_Hippocampus" / "imagesTr").glob("[!.]*.nii*"))
    assert len(files) == 199
    assert all(body_mask(read_volume(file).array).all() for file in files)


def test_box_is_the_smallest_that_holds_the_mask():
    mask = np.zeros(SHAPE, bool)
    mask[3, 7, 39] = mask[10, 5, 0] = True
    assert bounding_box(mask) == ((3, 11), (5, 8), (0, 40))
