"""Scores of samples with known faults: none, blurred, ignoring the mask, diverged, and copied."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import model_options
from scipy.ndimage import gaussian_filter

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import NO_ATTRIBUTES
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.evaluation.memorisation import expected_near_copies
from medaug.keys import check_values
from medaug.options import MasksOptions, Options, SegmenterOptions, TrainerOptions
from medaug.segmentation.unet import UNetSegmenter
from medaug.synthesis import scoring
from medaug.synthesis.scoring import sample_score
from medaug.training.checkpoint import Card
from medaug.training.data import TrainingData

SHAPE = (20, 20, 20)
SCHEMA = LabelSchema(((0, "background"), (1, "box")))
CARD = Card(
    "toy", model_options(), Preprocessing(SHAPE, None, (0.0, 100.0)), SCHEMA, ("T1",), {"train": [], "val": []}, True
)
BUDGET = TrainerOptions(batch_size=3, score_every=1, score_num=8, score_inference_steps=2, selector_steps=1)
TINY = SegmenterOptions(channels=[4, 8], batch_size=2, num_workers=0)
REAL_MASKS = MasksOptions(source="real")


def paint(label, seed):
    """An image for that mask: tissue of its own, and a brighter box."""
    tissue = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.0, mode="wrap")
    return np.clip(0.2 * tissue / tissue.std() + 0.4 * (label == 1) - 0.2, -1, 1)[None].astype(np.float32)


def person(seed, labelled=True):
    label = np.zeros(SHAPE, np.uint8)
    x, y, z = np.random.default_rng(1000 + seed).integers(3, 9, 3)
    label[x : x + 8, y : y + 8, z : z + 8] = 1
    place = Placement(SHAPE, ((0, 1), (1, 1), (2, 1)), SHAPE, (0.0,), (1.0,))
    case = Case(str(seed), ("x.nii.gz",), "y.nii.gz" if labelled else None, str(seed), "train")
    return ModelCase(case, paint(label, seed), label if labelled else None, np.eye(4), np.dtype("i2"), place)


TRAIN = [person(seed) for seed in range(16)]
VAL = [person(seed) for seed in range(100, 112)]


class Painter:
    """A model with a given sampling function: `draw(label (X, Y, Z), seed) -> (M, X, Y, Z)`."""

    class codec:
        mean = torch.zeros(1)

    attributes = NO_ATTRIBUTES

    def __init__(self, draw):
        self.draw = draw
        self.seeds: list[int] = []

    def sample(self, label, seeds, *others, **options):
        self.seeds += seeds
        images = [self.draw(one.numpy(), seed) for one, seed in zip(label, seeds, strict=True)]
        return torch.from_numpy(np.stack(images).astype(np.float32))


def perfect(label, seed):
    return paint(label, seed)


def blurred(label, seed):
    return gaussian_filter(paint(label, seed), (0, 1, 1, 1))


def disobedient(label, seed):
    return paint(person(seed % 1000 + 500).label, seed)


def diverged(label, seed):
    return np.full((1, *SHAPE), np.nan)


def copying(label, seed):
    return next(case.image for case in TRAIN if np.array_equal(case.label, label))[:, ::-1]


@pytest.fixture
def by_threshold(monkeypatch):
    """A selecting segmenter that needs no training: after smoothing, the bright voxels are the box."""

    def segment(self, image):
        return (gaussian_filter(np.asarray(image)[0], 1.5) > 0.0).astype(np.uint8)

    monkeypatch.setattr(UNetSegmenter, "segment", segment)
    monkeypatch.setattr(scoring, "LEAST_DICE", 0.1)


def scorer(folder, train=TRAIN, val=VAL, budget=BUDGET, **rest):
    return sample_score(TrainingData(CARD, train, val), budget, TINY, REAL_MASKS, folder, **rest)


@pytest.mark.slow
def test_better_samples_score_higher(by_threshold, tmp_path):
    score = scorer(tmp_path)
    found = {draw.__name__: score(Painter(draw), 1) for draw in (perfect, blurred, disobedient, copying)}
    perfection = found["perfect"]
    assert perfection["score"] > 0.7
    assert 0.9 < perfection["faithfulness"] < 1.1
    assert perfection["near_copies"] <= 0.25
    assert perfection["gradient"] == pytest.approx(1, abs=0.05)
    assert found["blurred"]["fidelity"] < 0.3 and perfection["fidelity"] > 0.6
    assert found["blurred"]["gradient"] < 0.8
    assert found["disobedient"]["faithfulness"] < 0.75 * perfection["faithfulness"]
    assert found["disobedient"]["fidelity"] > 0.6, "strangers look real"
    assert not np.isfinite(score(Painter(diverged), 1)["score"]), "a training is ended by it"
    assert found["copying"]["near_copies"] == 1 and found["copying"]["score"] == 0
    assert found["copying"]["near_copies_p"] < 0.01 < perfection["near_copies_p"]
    assert found["copying"]["fidelity"] > 0.6, "a copy looks real"
    others = ("blurred", "disobedient", "copying")
    assert all(found[name]["score"] < 0.9 * perfection["score"] for name in others)
    for numbers in found.values():
        assert 0 <= numbers["score"] <= 1 and all(np.isfinite(value) for value in numbers.values())


@pytest.mark.slow
def test_the_score_is_made_of_its_parts(by_threshold, tmp_path):
    numbers = scorer(tmp_path)(Painter(blurred), 1)
    f, g = min(1.0, numbers["faithfulness"]), 1 / (1 + numbers["spectral_discrepancy"])
    new = min(1.0, (1 - numbers["near_copies"]) / (1 - expected_near_copies(len(VAL))))
    assert numbers["score"] == pytest.approx(2 * f * g / (f + g) * new)


@pytest.mark.slow
def test_the_samples_are_the_same_at_every_step_and_in_every_batch(by_threshold, tmp_path):
    model, larger = Painter(perfect), Painter(perfect)
    score = scorer(tmp_path)
    assert score(model, 1) == score(model, 2)
    assert model.seeds[:8] == model.seeds[8:] and len(set(model.seeds)) == 8
    scorer(tmp_path, budget=replace(BUDGET, batch_size=8))(larger, 1)
    assert larger.seeds == model.seeds[:8]


def test_masks_are_of_labelled_training_scans_only(by_threshold, tmp_path):
    masks_used = []

    def note(label, seed):
        masks_used.append(label)
        return paint(label, seed)

    hidden = [person(i, labelled=i % 2 == 0) for i in range(16)]
    scorer(tmp_path, train=hidden)(Painter(note), 1)
    allowed = [case.label for case in hidden if case.label is not None]
    assert masks_used and all(any(np.array_equal(mask, label) for label in allowed) for mask in masks_used)


@pytest.mark.slow
def test_the_selector_is_trained_once(tmp_path, monkeypatch):
    scorer(tmp_path)
    before = (tmp_path / "selector.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(UNetSegmenter, "fit", lambda *_: pytest.fail("trained again"))
        scorer(tmp_path)
    assert (tmp_path / "selector.pt").read_bytes() == before
    (tmp_path / "selector.pt").unlink()
    torch.manual_seed(5)
    scorer(tmp_path)
    assert (tmp_path / "selector.pt").read_bytes() == before, "a function of its seed"


@pytest.mark.parametrize(
    ("train", "val", "why"),
    [
        (TRAIN[:3], VAL, "3 labelled training and 12 labelled validation scans are too few"),
        (TRAIN, [person(i, labelled=False) for i in range(100, 103)], "16 labelled training and 0 labelled"),
        (TRAIN, VAL, "so poor would say nothing"),
    ],
)
def test_without_a_selector_the_score_is_fidelity_alone(tmp_path, caplog, train, val, why):
    """The last: one step of training teaches nothing."""
    with caplog.at_level(logging.INFO):
        score = scorer(tmp_path, train=train, val=val)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith("samples are scored by fidelity alone") and why in said
    numbers = score(Painter(perfect), 1)
    assert not {"dice", "faithfulness", "kernel_distance"} & numbers.keys()
    assert numbers["score"] == pytest.approx(
        numbers["fidelity"] * min(1.0, (1 - numbers["near_copies"]) / (1 - expected_near_copies(len(val))))
    )


def test_a_process_that_only_samples_waits_for_the_first_and_reads_no_scan(by_threshold, tmp_path):
    (tmp_path / "first").mkdir()
    scorer(tmp_path / "first")
    model = Painter(perfect)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(scorer, tmp_path, val=(), measures=False)
        with pytest.raises(TimeoutError):
            other.result(timeout=0.2)
        (tmp_path / "first" / ".scoring").rename(tmp_path / ".scoring")
        assert other.result(timeout=10)(model, 1) == {}
    assert len(model.seeds) == 8
    assert not (tmp_path / "selector.pt").exists()


@pytest.mark.parametrize(
    ("train", "why"),
    [
        ([person(0, labelled=False), person(1, labelled=False)], "no training scan has a label"),
        (TRAIN[:1], "single"),
        ([replace(case, image=case.image[:, :5]) for case in TRAIN[:2]], "has 3 x 12 x 12; set it to 0"),
    ],
)
def test_nothing_to_sample_or_compare_is_refused(tmp_path, train, why):
    with pytest.raises(UserError, match=why):
        scorer(tmp_path, train=train)


@pytest.mark.parametrize(
    "change", [{"score_every": -1}, {"score_num": 1}, {"score_inference_steps": 0}, {"selector_steps": 0}]
)
def test_impossible_options_are_refused_by_name(change):
    check_values(Options(trainer=BUDGET), "train")
    (key,) = change
    with pytest.raises(UserError, match=f"trainer.{key}="):
        check_values(Options(trainer=replace(BUDGET, **change)), "train")
