"""The segmenter learns an easy problem, and its weights depend only on its arguments."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from medaug.cohort.manifest import Case
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.data.transforms import classical
from medaug.errors import UserError
from medaug.evaluation.scores import mean_foreground_dice
from medaug.options import SegmenterOptions
from medaug.segmentation.backends import BACKENDS, trained_judge
from medaug.segmentation.batches import training_batches
from medaug.segmentation.nets import build_unet
from medaug.segmentation.protocol import Problem, TrainingSet
from medaug.segmentation.unet import (
    dice_and_cross_entropy,
    encode,
    load_segmenter,
    save_segmenter,
    segment,
    train_segmenter,
)
from medaug.training.model import has_bf16

SIDE = 16
SCHEMA = LabelSchema(((0, "background"), (1, "dim"), (2, "bright")))
TINY = SegmenterOptions(channels=[8, 16], batch_size=4, learning_rate=5e-3, num_workers=0)


def toy(index: int, level: float | None = None) -> ModelCase:
    """Two bright boxes of different brightness at a random place; `level` marks every voxel instead."""
    rng = np.random.default_rng(index)
    x, y, z = rng.integers(2, 6, 3)
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[x : x + 5, y : y + 8, z : z + 8] = 1
    label[x + 5 : x + 9, y : y + 8, z : z + 8] = 2
    image = np.array([-0.8, 0.1, 0.8])[label] + rng.normal(0, 0.1, label.shape)
    if level is not None:
        image = np.full(label.shape, level)
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    case = Case(f"toy_{index}", ("a.nii.gz",), "b.nii.gz", f"toy_{index}")
    return ModelCase(case, image[None].astype(np.float32), label, np.eye(4), np.dtype("f4"), placement)


CASES = [toy(i) for i in range(6)]


@pytest.mark.slow
def test_an_easy_problem_is_learned():
    net = train_segmenter(TrainingSet(CASES, augment=None), 3, TINY, 60, 0, "toy")
    unseen = [toy(100 + i) for i in range(4)]
    scores = [mean_foreground_dice(segment(net, case.image), case.label, SCHEMA) for case in unseen]
    assert np.mean(scores) > 0.9


def weights(seed=0, steps=3, training_set=None, options=TINY):
    net = train_segmenter(training_set or TrainingSet(CASES), 3, options, steps, seed, "toy")
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_regardless_of_global_state():
    one = weights()
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(weights(), one)
    assert not torch.equal(weights(seed=1), one)


@pytest.mark.slow
def test_the_number_of_loading_processes_changes_nothing():
    options = SegmenterOptions(channels=[8, 16], batch_size=4, learning_rate=5e-3, num_workers=1)
    assert torch.equal(weights(options=options), weights())


@pytest.mark.parametrize(
    ("batch_size", "share", "expected"), [(4, 0.5, 2), (4, 0.25, 1), (2, 0.5, 1), (5, 0.6, 3), (8, 0.9, 7)]
)
def test_each_batch_holds_the_share_of_synthetic_volumes(batch_size, share, expected):
    real, synthetic = [toy(i, -0.5) for i in range(3)], [toy(i, 0.5) for i in range(5)]
    batches = training_batches(TrainingSet(real, synthetic, share, augment=None), batch_size, 3, 6, 0)
    for step in range(6):
        batch = batches[step]
        assert batch["image"].shape == (batch_size, 1, SIDE, SIDE, SIDE)
        assert len(batch["label"]) == batch_size
        assert int((batch["image"][:, 0, 0, 0, 0] > 0).sum()) == expected


def test_without_synthetic_volumes_every_batch_is_real_whatever_the_share():
    batches = training_batches(TrainingSet([toy(0, -0.5)], (), 0.5, augment=None), 4, 3, 1, 0)
    assert (batches[0]["image"] == -0.5).all() and len(batches[0]["image"]) == 4


def test_every_volume_is_used_equally_often():
    synthetic = [toy(i, (i + 1) / 10) for i in range(3)]
    batches = training_batches(TrainingSet([toy(0, -1)], synthetic, 0.5, augment=None), 2, 3, 9, 0)
    levels = [round(float(batches[step]["image"].max()), 1) for step in range(9)]
    assert sorted(levels) == [0.1] * 3 + [0.2] * 3 + [0.3] * 3


def test_augmentation_moves_image_and_label_or_nothing():
    plain, augmented = (training_batches(TrainingSet(CASES, augment=a), 4, 3, 1, 0) for a in (None, classical))
    assert torch.equal(plain[0]["image"], plain[0]["image"])
    assert torch.equal(augmented[0]["image"], augmented[0]["image"])
    assert not torch.equal(plain[0]["image"], augmented[0]["image"])
    assert set(augmented[0]["label"].unique().tolist()) == {0, 1, 2}


def test_a_saved_segmenter_segments_as_before(tmp_path):
    net = train_segmenter(TrainingSet(CASES), 3, TINY, 2, 0, "toy")
    save_segmenter(net, tmp_path / "net.pt")
    again = load_segmenter(tmp_path / "net.pt", 1, 3, TINY.channels)
    result = segment(again, CASES[0].image)
    assert result.dtype == np.uint8 and result.shape == (SIDE,) * 3
    np.testing.assert_array_equal(result, segment(net, CASES[0].image))


def test_a_judge_of_any_backend_is_trained_once_and_one_that_cannot_judge_is_refused(tmp_path, monkeypatch):
    """A judge that is not a network: voxels brighter than the mean of the training images are class 1."""

    class Threshold:
        def __init__(self, problem, options):
            pass

        def fit(self, training_set, steps, seed, name):
            self.level = float(np.mean([case.image for case in training_set.real]))

        def predict(self, case):
            return self.segment(case.image)

        def segment(self, image):
            return (image[0] > self.level).astype(np.uint8)

        def features(self, image):
            return image.mean((1, 2, 3))

        def save(self, path):
            path.write_text(str(self.level))

        def load(self, path):
            self.level = float(path.read_text())

    class Plain:
        def __init__(self, problem, options):
            pass

        fit, predict = Threshold.fit, Threshold.predict

    for name, made in (("threshold", Threshold), ("plain", Plain)):
        monkeypatch.setitem(BACKENDS.own, name, lambda made=made: SimpleNamespace(make=made))
    path = tmp_path / "judge.txt"
    problem = Problem(("T1",), SCHEMA, Preprocessing((SIDE,) * 3, None, (0.0, 100.0)))
    judge = trained_judge("threshold", problem, TINY, TrainingSet(CASES), 1, 0, "judge", path)
    expected = CASES[0].image[0] > np.mean([case.image for case in CASES])
    np.testing.assert_array_equal(judge.segment(CASES[0].image), expected)
    path.write_text("5")  # what is on file is not trained again
    again = trained_judge("threshold", problem, TINY, TrainingSet(CASES), 1, 0, "judge", path)
    assert not again.segment(CASES[0].image).any()
    with pytest.raises(UserError, match="backend plain cannot be the judge: its segmenters lack some of the methods"):
        trained_judge("plain", problem, TINY, TrainingSet(CASES), 1, 0, "judge", path)


def test_a_full_disk_is_reported_in_one_line(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_segmenter(torch.nn.Linear(1, 1), tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []


def logits_and_label(seed):
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (2, 6, 5, 4), generator=draw)
    return torch.randn(2, 3, 6, 5, 4, generator=draw).requires_grad_(), label


@pytest.mark.parametrize("seed", range(5))
def test_without_ignored_voxels_the_loss_is_monais_to_the_bit(seed):
    logits, label = logits_and_label(seed)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, label[:, None])
    ours = dice_and_cross_entropy(logits, label)
    assert torch.equal(ours, monai)
    (expected,), (found,) = torch.autograd.grad(monai, logits), torch.autograd.grad(ours, logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ignored_voxels_do_not_reach_the_loss(seed):
    logits, label = logits_and_label(seed)
    ignored = torch.rand(label.shape, generator=torch.Generator().manual_seed(9)) < 0.4
    loss = dice_and_cross_entropy(logits, label.masked_fill(ignored, IGNORE))
    (gradient,) = torch.autograd.grad(loss, logits)
    touched = gradient.abs().sum(1) > 0
    assert torch.equal(touched, ~ignored)
    changed = torch.where(ignored[:, None], logits * 10 + 3, logits)
    assert torch.equal(dice_and_cross_entropy(changed, label.masked_fill(ignored, IGNORE)), loss)
    # The loss must be that of the judged voxels, as if there were no others.
    judged = [logits.movedim(1, -1)[~ignored].T[None, :, :, None, None], label[~ignored][None, None, :, None, None]]
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(*judged)
    torch.testing.assert_close(loss, monai)


def test_a_batch_of_ignored_voxels_has_zero_gradients():
    logits, label = logits_and_label(0)
    loss = dice_and_cross_entropy(logits, torch.full_like(label, IGNORE))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss) and not gradient.any()


def test_training_works_with_ignored_voxels():
    cases = [toy(i) for i in range(3)]
    for case in cases:
        case.label[:4] = IGNORE
    assert torch.isfinite(weights(training_set=TrainingSet(cases))).all()


@pytest.mark.parametrize("channels", [[4, 8], [4, 8, 12]])
def test_features_are_the_mean_of_the_coarsest_level(channels):
    """An independent encoder: the units before each skip connection, one after the other."""
    net = train_segmenter(
        TrainingSet(CASES), 3, SegmenterOptions(channels=channels, batch_size=2, num_workers=0), 1, 0, "toy"
    )
    x = torch.from_numpy(CASES[0].image)[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16(torch.device("cpu"))):
        down, rest, _ = net.model
        for _ in channels[:-2]:
            x = down(x)
            down, rest, _ = rest.submodule
        x = rest.submodule(down(x))
    assert x.shape[1] == channels[-1]
    features = encode(net, CASES[0].image)
    np.testing.assert_array_equal(features, x.float().mean((0, 2, 3, 4)).numpy())
    assert not np.allclose(features, encode(net, CASES[1].image))


def test_damaged_bytes_never_become_weights_of_a_segmenter(tmp_path):
    path = tmp_path / "judge.pt"
    net = build_unet(1, 3, TINY.channels)
    save_segmenter(net, path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            again = load_segmenter(path, 1, 3, TINY.channels)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            for name, value in net.state_dict().items():
                assert torch.equal(again.state_dict()[name].cpu(), value)
    assert refused > 20


def test_a_segmenter_of_another_architecture_is_refused_in_one_line(tmp_path):
    path = tmp_path / "judge.pt"
    save_segmenter(build_unet(1, 3, TINY.channels), path)
    for modalities, classes in ((2, 3), (1, 4)):
        with pytest.raises(
            UserError, match="judge.pt: .* and the model needs .*; remove it; the segmenter is then trained again"
        ):
            load_segmenter(path, modalities, classes, TINY.channels)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="judge.pt: cannot be read"):
        load_segmenter(path, 1, 3, TINY.channels)


@pytest.mark.parametrize("shape", [(16, 12, 1), (9, 7, 5)])
def test_volumes_of_any_sides_are_segmented(shape):
    case = toy(0)
    small = replace(
        case, image=case.image[:, : shape[0], : shape[1], : shape[2]], label=case.label[tuple(map(slice, shape))]
    )
    net = train_segmenter(TrainingSet([small], augment=classical), 3, TINY, 2, 0, "toy")
    assert segment(net, small.image).shape == shape
    assert np.isfinite(encode(net, small.image)).all()


def test_a_single_slice_is_not_computed_from_uninitialised_memory():
    # In bfloat16 on a processor, torch 2.13 leaves the output of a strided convolution with a last side of 1 unwritten.
    case = toy(0)
    flat = replace(case, image=case.image[..., 8:9], label=case.label[..., 8:9])
    several = [weights(seed, steps=2, training_set=TrainingSet([flat])) for seed in (0, 0)]
    assert torch.equal(*several) and several[0].isfinite().all()
    net = train_segmenter(TrainingSet([flat]), 3, TINY, 2, 0, "toy")
    with torch.autocast("cpu", enabled=False):
        expected = net(torch.as_tensor(flat.image)[None]).argmax(1)[0].numpy()
    for _ in range(3):
        waste = [torch.full((1 << 16,), float("nan")) for _ in range(8)]
        del waste
        np.testing.assert_array_equal(segment(net, flat.image), expected)
