"""Pseudo-labels, fractional shares, averaged weights, mirrored predictions and deep supervision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_unet_backend import CASES, SIDE, TINY, toy

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.data.augmentations import Strong, mirror_axes
from medaug.data.batches import confidence
from medaug.errors import UserError
from medaug.networks.condition import one_hot
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.batches import PseudoSamples, random_block, training_batches
from medaug.segmentation.nets import build_dynunet
from medaug.segmentation.protocol import Problem, PseudoLabels, SoftSegmenter, TrainingSet
from medaug.segmentation.unet import (
    UNetSegmenter,
    batch_loss,
    dice_and_cross_entropy,
    soft_dice_and_cross_entropy,
    train_segmenter,
)

SCHEMA = LabelSchema(((0, "background"), (1, "dim"), (2, "bright")))


def test_certain_probabilities_give_the_loss_of_labels():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=rng)
    label = torch.randint(0, 3, (2, 4, 4, 4), generator=rng)
    label[0, 0] = IGNORE
    soft = soft_dice_and_cross_entropy(logits, one_hot(label, 3).float(), (label != IGNORE).float())
    assert soft == pytest.approx(float(dice_and_cross_entropy(logits, label)), rel=1e-5)
    batch = {"label": label}
    assert batch_loss(logits, batch) == dice_and_cross_entropy(logits, label)
    levels = [logits, logits.flip(0)]
    expected = (2 * batch_loss(levels[0], batch) + batch_loss(levels[1], batch)) / 3
    assert batch_loss(levels, batch) == pytest.approx(float(expected), rel=1e-6)


def test_weights_of_voxels_reach_the_loss_and_move_with_the_label():
    case = CASES[0]
    # The doubted voxels are a class, so that one can be told from the other after augmentation.
    doubted = replace(case, weight=np.where(case.label == 1, 51, 255).astype(np.uint8))
    batches = training_batches(TrainingSet([case], [doubted], 0.5), 2, 3, 6, 0)
    for step in range(6):
        batch = batches[step]
        trusted, other = batch["weight"]
        assert trusted.eq(1).all()
        torch.testing.assert_close(other, torch.where(batch["soft"][1].argmax(0) == 1, 0.2, 1.0))
    plain = training_batches(TrainingSet([case], [case], 0.5), 2, 3, 6, 0)
    assert "label" in plain[0] and torch.equal(plain[0]["image"], batches[0]["image"])

    batch = training_batches(TrainingSet([case], [doubted], 0.5, None), 2, 3, 1, 0)[0]
    logits = torch.randn(batch["soft"].shape, generator=torch.Generator().manual_seed(0))
    shares = np.exp(logits.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    truth = np.stack([SCHEMA.one_hot(case.label)] * 2).astype(float)
    weight = np.stack([np.ones(case.label.shape), np.where(case.label == 1, 0.2, 1.0)])[:, None]
    entropy = -(truth * np.log(shares) * weight).sum() / weight.sum()
    axes = (0, 2, 3, 4)
    overlap, sizes = (shares * truth * weight**2).sum(axes), ((shares + truth) * weight).sum(axes)
    dice = np.mean(1 - (2 * overlap[1:] + 1e-5) / (sizes[1:] + 1e-5))
    assert float(batch_loss(logits, batch)) == pytest.approx(entropy + dice, rel=1e-5)


def test_confidence_is_one_where_a_class_is_certain_and_zero_where_all_are_equal():
    shares = torch.tensor([[1.0, 1 / 3, 0.6], [0.0, 1 / 3, 0.4], [0.0, 1 / 3, 0.0]])[:, :, None, None]
    assert confidence(shares).flatten().tolist() == pytest.approx([1, 0, 0.4], abs=1e-6)


def test_shares_that_are_not_whole_hold_on_average():
    real, synthetic = [toy(i, -0.5) for i in range(3)], [toy(i, 0.5) for i in range(5)]
    batches = training_batches(TrainingSet(real, synthetic, 0.2, None, exact=True), 4, 3, 10, 0)
    counts = [int((batches[step]["image"][:, 0, 0, 0, 0] > 0).sum()) for step in range(10)]
    assert sum(counts) == 8 and set(counts) == {0, 1} and len(batches[0]["image"]) == 4
    again = training_batches(TrainingSet(real, synthetic, 0.2, None, exact=True), 4, 3, 10, 0)
    assert torch.equal(again[7]["image"], batches[7]["image"]), "a batch depends on its step alone"


class Unchanged:
    """An augmentation that changes nothing."""

    def soft(self, image, probabilities, seed):
        return image, torch.from_numpy(probabilities)


def test_cutmix_moves_image_probabilities_and_weights_of_a_block_together():
    scans = [replace(toy(i, 0.0), label=None, image=np.full((1, SIDE, SIDE, SIDE), i, np.float32)) for i in range(3)]
    shares = [np.zeros((3, SIDE, SIDE, SIDE), np.uint8) for _ in scans]
    for i, certain in enumerate((255, 204, 153)):
        shares[i][0], shares[i][1] = certain, 255 - certain
    pseudo = PseudoLabels(scans, shares, Unchanged(), cutmix=1.0)
    for position in range(20):
        sample, plain = (PseudoSamples(replace(pseudo, cutmix=c), 0).sample(position) for c in (1.0, 0.0))
        image = sample["image"][0]
        first = plain["image"][0, 0, 0, 0]
        other = (set(image.unique().tolist()) - {float(first)}).pop()
        block = (image == other).nonzero()
        low, high = block.min(0).values, block.max(0).values + 1
        assert len(block) == (high - low).prod() and 0.1 < len(block) / SIDE**3 < 0.7
        for i in {float(first), other}:
            there = image == i
            assert sample["soft"][0][there].unique().tolist() == pytest.approx([1 - 0.2 * i])
            assert len(sample["weight"][there].unique()) == 1
        assert plain["image"].unique().numel() == 1 and sample["weight"].unique().numel() == 2
    volumes = [
        np.prod([s.stop - s.start for s in random_block((40, 40, 40), np.random.default_rng(i))]) for i in range(50)
    ]
    assert min(volumes) / 40**3 > 0.22 and max(volumes) / 40**3 < 0.54


def test_the_last_steps_use_human_labels_only_and_soft_labels_move_with_the_image():
    unlabelled = [replace(toy(i, 0.5), label=None) for i in range(2)]
    shares = np.zeros((3, SIDE, SIDE, SIDE), np.uint8)
    shares[0], shares[1] = 204, 51  # 0.8 and 0.2
    pseudo = PseudoLabels(unlabelled, [shares] * 2, Strong((0,)), share=0.5, finish=0.2)
    batches = training_batches(TrainingSet([toy(0, -0.5)], augment=None, pseudo=pseudo), 4, 3, 10, 0)
    for step in range(10):
        batch = batches[step]
        taught = "soft" in batch
        assert taught == (step < 8)
        if taught:
            assert batch["soft"].shape == (4, 3, SIDE, SIDE, SIDE) and batch["soft"].sum(1).allclose(torch.ones(1))
            assert batch["weight"][:2].eq(1).all() and batch["weight"][2:].allclose(torch.tensor(0.7), atol=0.01)
            assert batch["soft"][:2].amax(1).eq(1).all(), "human labels stay certain"


@pytest.mark.slow
def test_strong_augmentation_moves_probabilities_like_labels():
    case = CASES[0]
    image, label = torch.from_numpy(case.image), torch.from_numpy(case.label).long()
    planes = SCHEMA.one_hot(case.label).astype(np.float32)
    strong, moved = Strong((0,)), 0
    for seed in range(12):
        hard_image, hard = strong(image, label, seed)
        soft_image, soft = strong.soft(image, planes, seed)
        assert torch.equal(hard_image, soft_image)
        assert (soft.argmax(0) == hard).float().mean() > 0.97
        moved += not torch.equal(hard, label)
        assert hard_image.min() >= -1 and hard_image.max() <= 1 and set(hard.unique().tolist()) <= {0, 1, 2}
        assert torch.equal(strong(image, label, seed)[0], hard_image), "a function of the seed"
    assert moved > 3 and torch.equal(label, torch.from_numpy(case.label).long())


def test_sides_that_labels_name_are_not_mirrored():
    assert mirror_axes(SCHEMA) == (0,)
    for name in ("left lung", "Kidney_R", "lh-cortex", "hippocampus right"):
        assert mirror_axes(LabelSchema(((0, "background"), (1, name)))) == ()
    assert mirror_axes(LabelSchema(((0, "background"), (1, "liver"), (2, "bright")))) == (0,)


class Space:
    """No change of grid."""

    def invert_label(self, label, placement):
        return label


@pytest.mark.slow
def test_mirrored_prediction_is_symmetric_for_a_symmetric_scan():
    problem = Problem(("T1",), SCHEMA, Space())
    half = CASES[0].image[:, : SIDE // 2]
    case = replace(CASES[0], image=np.concatenate([half, half[:, ::-1]], axis=1))
    for mirror in (False, True):
        segmenter = UNetSegmenter(problem, replace(TINY, mirror=mirror))
        segmenter.fit(TrainingSet(CASES), 3, 0, "toy")
        shares = segmenter.soft_label(case.image)
        assert isinstance(segmenter, SoftSegmenter) and shares.sum(0) == pytest.approx(1, abs=1e-4)
        assert (np.abs(shares - shares[:, ::-1]).max() < 1e-4) == mirror
        np.testing.assert_array_equal(segmenter.predict(case), shares.argmax(0))


@pytest.mark.slow
def test_averaged_weights_lie_between_those_of_the_steps():
    plain, averaged = (
        [p.detach() for p in train_segmenter(TrainingSet(CASES), 3, replace(TINY, ema=decay), 4, 0, "toy").parameters()]
        for decay in (0.0, 0.9)
    )
    start = [
        p.detach()
        for p in train_segmenter(TrainingSet(CASES), 3, replace(TINY, learning_rate=1e-12), 1, 0, "toy").parameters()
    ]
    distances = [sum(float((a - b).norm()) for a, b in zip(one, start, strict=True)) for one in (averaged, plain)]
    assert 0 < distances[0] < distances[1]


@pytest.mark.parametrize("levels", [3, 4])
def test_a_dynunet_is_supervised_on_its_coarser_levels_and_segments_volumes_of_any_size(levels):
    net = build_dynunet(1, 3, [4, 8, 8, 8][:levels])
    outputs = net.train()(torch.zeros(1, 1, 15, 12, 9))
    assert (isinstance(outputs, list) and len(outputs) == 2) == (levels == 4)
    assert all(level.shape == (1, 3, 15, 12, 9) for level in (outputs if levels == 4 else [outputs]))
    assert net.eval()(torch.zeros(1, 1, 15, 12, 9)).shape == (1, 3, 15, 12, 9)


@pytest.mark.slow
def test_the_dynunet_backend_trains():
    problem = Problem(("T1",), SCHEMA, Space())
    segmenter = BACKENDS["dynunet"].make(problem, replace(TINY, channels=[4, 8, 8, 8]))
    segmenter.fit(TrainingSet(CASES), 2, 0, "toy")
    assert segmenter.predict(CASES[0]).shape == (SIDE,) * 3
    with pytest.raises(UserError, match="this backend needs at least 3 levels"):
        BACKENDS["dynunet"].make(problem, TINY)
