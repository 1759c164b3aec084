"""Augmentation: a function of its seed that keeps ranges and classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medaug.data.transforms import _warp, classical, light_affine, random_affine


def make_sample(shape=(12, 10, 8)):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    distance = np.linalg.norm(index - (np.array(shape)[:, None, None, None] - 1) / 2, axis=0)
    label = torch.from_numpy(np.where(distance < 2, 3, np.where(distance < 4, 1, 0)))
    image = torch.from_numpy(np.stack([np.cos(distance), np.tanh(distance - 3)])).float()
    return image, label


@pytest.mark.parametrize("augment", [light_affine, classical])
def test_augmentation_is_a_function_of_the_seed(augment):
    image, label = make_sample()
    kept = image.clone(), label.clone()
    once = [augment(image, label, seed) for seed in range(12)]
    again = [augment(image, label, seed) for seed in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for one, two in zip(once, again, strict=True) for a, b in zip(one, two, strict=True))
    assert len({tuple(out.flatten().tolist()) for out, _ in once}) > 4
    assert torch.equal(image, kept[0]) and torch.equal(label, kept[1]), "the case itself is untouched"


@pytest.mark.parametrize("augment", [light_affine, classical])
@pytest.mark.parametrize("seed", [*range(20), 2**62 + 1])
def test_ranges_types_and_classes_are_kept(augment, seed):
    image, label = make_sample()
    out, mask = augment(image, label, seed)
    assert out.shape == image.shape and out.dtype == torch.float32 and type(out) is torch.Tensor
    assert mask.shape == label.shape and mask.dtype == torch.int64
    assert out.min() >= -1 and out.max() <= 1
    assert set(mask.unique().tolist()) <= set(label.unique().tolist())


def test_half_of_the_light_augmentations_change_nothing():
    image, label = make_sample((6, 6, 6))
    untouched = sum(light_affine(image, label, seed)[0] is image for seed in range(200))
    assert 75 < untouched < 125  # 3.5 standard deviations


@pytest.mark.parametrize("order", [1, 3])
def test_the_identity_changes_nothing(order):
    image, label = make_sample()
    out, mask = _warp(image, label, np.eye(3), np.zeros(3), order)
    torch.testing.assert_close(out, image, atol=1e-6, rtol=0)
    assert torch.equal(mask, label)


@pytest.mark.parametrize("order", [1, 3])
def test_image_and_label_move_together(order):
    """A shift by one voxel, and a quarter turn about the centre, both known without interpolation."""
    image, label = make_sample((8, 8, 8))
    image = image + torch.linspace(-0.1, 0.1, 8)[:, None, None]
    image = image.clamp(-1, 1)
    out, mask = _warp(image, label, np.eye(3), np.array([1.0, 0.0, 0.0]), order)
    torch.testing.assert_close(out[:, :-1], image[:, 1:], atol=1e-5, rtol=0)
    assert torch.equal(mask[:-1], label[1:])
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    out, mask = _warp(image, label, turn, np.zeros(3), order)
    torch.testing.assert_close(out, torch.rot90(image, -1, (1, 2)), atol=1e-5, rtol=0)
    assert torch.equal(mask, torch.rot90(label, -1, (0, 1)))


def test_affines_have_the_stated_spread():
    rng = np.random.default_rng(0)
    matrices = np.array([random_affine(rng, rotation=4.0, scaling=0.05) for _ in range(2000)])
    scales = np.linalg.norm(matrices, axis=1)
    assert np.log(scales).std(axis=0) == pytest.approx(0.05, rel=0.1)
    rotations = matrices / scales[:, None]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (2000, 3, 3)), atol=1e-9
    )
    angle = np.degrees(np.arccos((np.trace(rotations, axis1=1, axis2=2) - 1) / 2))
    assert np.sqrt(np.mean(angle**2)) == pytest.approx(4 * np.sqrt(3), rel=0.05)
