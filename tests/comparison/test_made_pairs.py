"""Pairs without a generator, compared with what their construction says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.comparison.arms import ARMS
from medaug.comparison.deformations import register, warp, warped
from medaug.comparison.made_pairs import carved, contrast_random, copy_paste, moved_lesion, scaled
from medaug.comparison.material import Material
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.evaluation.scores import dice

SCHEMA = LabelSchema(((0, "background"), (1, "core"), (2, "rim")))
SHAPE = (12, 12, 10)


def toy(number: int, centre: tuple[int, int, int], radius: float = 2.5) -> ModelCase:
    """A bright ball with a core, in a noisy body surrounded by air; every case has its own intensities."""
    rng = np.random.default_rng(number)
    distance = np.linalg.norm(np.indices(SHAPE) - np.array(centre)[:, None, None, None], axis=0)
    label = np.where(distance < radius - 1, 1, np.where(distance < radius, 2, 0)).astype(np.uint8)
    image = (0.1 * number + 0.3 * label + rng.normal(0, 0.02, SHAPE)).clip(-0.9, 1).astype(np.float32)
    image[0] = -1
    _, placement = Preprocessing(SHAPE, None).apply_image(image[None], np.eye(4))
    case = Case(f"c{number}", ("x.nii.gz",), "y.nii.gz", f"s{number}")
    return ModelCase(case, image[None], label, np.eye(4), np.dtype("f4"), placement, content=f"digest {number}")


LESIONS = [toy(i, centre) for i, centre in enumerate([(3, 3, 3), (8, 4, 6), (4, 8, 4), (8, 8, 5)])]
STRUCTURES = [toy(i, (6, 6, 5), 3 + 0.2 * i) for i in range(4)]


def material(cases, **more) -> Material:
    return Material(cases, (), 0.5, SCHEMA, **more)


@pytest.mark.parametrize("paste", [carved, moved_lesion])
def test_outside_the_pasted_region_all_is_the_hosts_and_inside_all_is_the_donors(paste):
    host, donor = LESIONS[0], LESIONS[3]
    for seed in range(8):
        image, label = paste(host, donor, np.random.default_rng(seed))
        changed = (image != host.image).any(axis=0)
        assert changed.any() and not changed.all()
        assert (label == host.label)[~changed].all(), "the label changes only where the image does"
        if paste is carved:
            assert (image[:, changed] == donor.image[:, changed]).all() and (
                label[changed] == donor.label[changed]
            ).all()
        else:
            assert (label[changed] > 0).all(), "only lesion voxels are pasted"
            assert set(np.unique(label[changed])) <= {1, 2}


def test_a_moved_lesion_keeps_its_shape_and_avoids_air():
    host, donor = replace(LESIONS[0], label=np.zeros(SHAPE, np.uint8)), LESIONS[3]
    sizes = []
    for seed in range(20):
        _, label = moved_lesion(host, donor, np.random.default_rng(seed))
        centre = np.argwhere(label > 0)
        sizes.append(len(centre))
    assert max(sizes) == int((donor.label > 0).sum()), "whole where it does not leave the grid"


def test_lesions_are_moved_and_structures_are_carved():
    """A ball in the same place in everyone stays in that place; balls in different places do not."""
    for cases, same in ((STRUCTURES, True), (LESIONS, False)):
        pairs = copy_paste(material(cases))
        union = np.logical_or.reduce([np.asarray(case.label) > 0 for case in cases])
        beyond = [bool(((np.asarray(pairs[i].label) > 0) & ~union).any()) for i in range(12)]
        assert not any(beyond) if same else any(beyond)


@pytest.mark.parametrize("make", [copy_paste, contrast_random, warp])
def test_a_pair_is_a_function_of_its_number_and_the_jobs_seed(make, tmp_path):
    one, again, other = (make(material(STRUCTURES, seed=seed, folder=tmp_path)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[i].image, again[i].image) for i in (0, 3)) and len(one) > 1000
    assert not np.array_equal(one[0].image, one[1].image)
    assert not all(np.array_equal(one[i].image, other[i].image) for i in range(4))
    pair = one[0]
    assert pair.image.dtype == np.float32 and pair.label.dtype == np.uint8 and pair.image.shape == (1, *SHAPE)
    assert pair.image.min() >= -1 and pair.image.max() <= 1 and set(np.unique(pair.label)) <= {0, 1, 2}
    with pytest.raises(IndexError):
        one[len(one)]


def test_random_contrast_keeps_the_mask_and_the_air_and_forgets_the_intensities():
    pairs = contrast_random(material(STRUCTURES[:1]))
    host = STRUCTURES[0]
    means = []
    for i in range(12):
        assert np.array_equal(pairs[i].label, host.label) and (pairs[i].image[0][0] == -1).all()
        means.append([pairs[i].image[0][np.asarray(host.label) == value].mean() for value in (1, 2)])
    core, rim = np.array(means).T
    assert core.std() > 0.1 and (core > rim).any() and (core < rim).any()


def test_demons_find_a_known_shift_and_warping_moves_image_and_mask_alike():
    moving, fixed = toy(0, (5, 6, 5), 4.0), toy(0, (6, 6, 5), 4.0)
    field = register(moving.image[0], fixed.image[0])
    assert field.shape == (3, *SHAPE)
    inside = np.asarray(fixed.label) > 0
    assert field[0][inside].mean() < -0.2, "voxel x of the warped scan is taken from x - 1"
    assert abs(field[1][inside].mean()) < 0.1 and abs(field[2][inside].mean()) < 0.1
    before, after = (dice(np.asarray(case.label) > 0, inside) for case in (moving, warped(moving, field)))
    assert after > before + 0.03
    shifted = warped(moving, np.stack([np.full(SHAPE, -1.0), np.zeros(SHAPE), np.zeros(SHAPE)]))
    assert np.array_equal(shifted.label[1:], moving.label[:-1])
    assert np.allclose(shifted.image[0, 1:], moving.image[0, :-1], atol=1e-6)


def test_displacements_are_kept_and_need_two_subjects(tmp_path):
    twin = replace(STRUCTURES[0], case=replace(STRUCTURES[0].case, name="c0b"), content="digest twin")
    pairs = warp(material(STRUCTURES[:2], folder=tmp_path))
    first = pairs[0].image
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 1 and next(iter(files)).suffix == ".npy"
    assert np.array_equal(pairs[0].image, first) and {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files
    with pytest.raises(UserError, match="arm warp: needs at least two labelled training subjects"):
        warp(material([STRUCTURES[0], twin], folder=tmp_path))


def test_every_arm_that_makes_pairs_is_compared_with_classical_augmentation():
    for name in ("copy_paste", "contrast_random", "warp"):
        training_set = ARMS[name].training_set(material(STRUCTURES))
        assert len(training_set.real) == 4 and training_set.num_synthetic(4) == 2 and len(training_set.synthetic) > 1000
        assert ARMS[name].baseline == "real+classical"


def test_the_arm_with_all_ingredients_uses_both_kinds_of_pairs_in_turn():
    pairs = [replace(toy(9, (6, 6, 5)), content=f"synthetic {i}") for i in range(3)]
    both = replace(ARMS["self_training+synthetic+copy_paste"], pseudo_labels=False)
    alone, chosen = (
        arm.training_set(replace(material(STRUCTURES, seed=4), synthetic=pairs)).synthetic
        for arm in (ARMS["copy_paste"], both)
    )
    assert len(chosen) == 2 * len(alone)
    for index in (0, 1, 7):
        np.testing.assert_array_equal(chosen[2 * index].image, alone[index].image)
        assert chosen[2 * index + 1].content == f"synthetic {index % 3}", "the smaller kind is repeated"


def test_scans_are_scaled_to_the_volumes_of_the_pairs():
    host = STRUCTURES[2]
    same, half = scaled(host, 1.0), scaled(host, 0.5)
    np.testing.assert_array_equal(same.label, host.label)
    np.testing.assert_array_equal(same.image, host.image)
    centre = np.argwhere(host.label > 0).mean(axis=0)
    assert np.abs(np.argwhere(half.label > 0).mean(axis=0) - centre).max() < 0.5
    bright = half.image[0] > 0.1 * 2 + 0.15  # the body is 0.2, the foreground 0.5 or more
    assert dice(bright, half.label > 0) > 0.85, "image and mask are scaled alike"
    pairs = [toy(20 + i, (6, 6, 5), radius) for i, radius in enumerate((2.2, 4.4))]
    wanted = sorted(int((pair.label > 0).sum()) for pair in pairs)
    made = ARMS["volume_matched"].training_set(replace(material(STRUCTURES, seed=3), synthetic=pairs)).synthetic
    found = np.array([int((made[i].label > 0).sum()) for i in range(24)])
    nearest = np.array([min(wanted, key=lambda volume, own=own: abs(volume - own)) for own in found])
    assert (np.abs(found / nearest - 1) < 0.35).all() and len(set(nearest)) == 2, "up to the voxels' coarseness"
    assert np.abs(found / nearest - 1).mean() < 0.2
    with pytest.raises(UserError, match="arm volume_matched: needs synthetic pairs"):
        ARMS["volume_matched"].training_set(material(STRUCTURES))
