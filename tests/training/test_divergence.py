"""A diverged training ends with one line, and no stage accepts NaN as a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import model_options, samples
from test_fit import BUDGET, CARD, contents, make_cases, train

from medaug.errors import UserError
from medaug.imaging.volume import as_stored
from medaug.networks.finite import not_finite
from medaug.options import SegmenterOptions
from medaug.segmentation.nets import build_unet
from medaug.segmentation.protocol import TrainingSet
from medaug.segmentation.unet import (
    load_segmenter,
    save_segmenter,
    segment,
    train_segmenter,
)
from medaug.training.callbacks import StopAtDivergence
from medaug.training.checkpoint import load_model, read_checkpoint
from medaug.training.data import TrainingData
from medaug.training.fit import fit
from medaug.training.model import DiffusionModel

SAMPLER = {"guidance_scale": 1.0, "sampler": "dpmpp_2m", "num_inference_steps": 2}


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_non_finite_tensor_is_named(value):
    sound = {
        "a": torch.ones(2),
        "b": [torch.zeros(1, dtype=torch.int64), {"c": torch.ones(())}],
        "d": "text",
        "e": None,
    }
    assert not_finite(sound) is None
    sound["b"][1]["c"].fill_(value)
    assert not_finite(sound) == "b.1.c"


def test_a_learning_rate_far_too_high_ends_the_training_and_saves_nothing(tmp_path):
    said = refused(train, tmp_path, budget=replace(BUDGET, learning_rate=1e30))
    assert "is NaN or infinite: the training has diverged" in said and "Lower trainer.learning_rate" in said
    assert not (tmp_path / "last.ckpt").exists() and not (tmp_path / "validation.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kept"), [(3, 2), (4, 2), (5, 4), (7, 6)])
def test_non_finite_loss_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, step, kept):
    sound = DiffusionModel.loss
    calls = []

    def loss(self, batch, *args, **kwargs):
        if self.training:
            calls.append(0)
        return sound(self, batch, *args, **kwargs) * (float("nan") if self.training and len(calls) == step else 1)

    monkeypatch.setattr(DiffusionModel, "loss", loss)
    assert refused(train, tmp_path).startswith(f"step {step}: the loss is NaN or infinite")
    assert contents(tmp_path)["global_step"] == kept
    read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_non_finite_weight_is_not_saved_even_if_the_loss_is_finite(tmp_path, monkeypatch, averaged):
    def poison(self, trainer, module, *_):
        if trainer.global_step == 4:
            network = trainer.callbacks[0]._average_model if averaged else module
            next(network.parameters()).data.view(-1)[0] = float("inf")

    monkeypatch.setattr(StopAtDivergence, "on_train_batch_end", poison)
    assert refused(train, tmp_path).startswith("step 4: a weight is NaN or infinite")
    assert contents(tmp_path)["global_step"] == 2


@pytest.mark.slow
def test_non_finite_validation_loss_ends_the_training(tmp_path, monkeypatch):
    sound = DiffusionModel.loss

    def loss(self, batch, *args, **kwargs):
        return sound(self, batch, *args, **kwargs) * (1 if self.training else float("inf"))

    monkeypatch.setattr(DiffusionModel, "loss", loss)
    assert refused(train, tmp_path).startswith("step 3: the validation loss is NaN or infinite")
    assert not (tmp_path / "validation.csv").exists()


def test_non_finite_sample_score_ends_the_training(tmp_path):
    def score(model, step):
        return {"score": 0.5, "near_copies": 0.0, "near_copies_p": 1.0, "gradient": float("nan")}

    budget = replace(BUDGET, score_every=2)
    said = refused(fit, TrainingData(CARD, make_cases(5, 0), make_cases(3, 1)), tmp_path, budget, "csv", score=score)
    assert said.startswith("step 2: the samples' gradient is NaN or infinite")
    assert not (tmp_path / "scores.csv").exists() and not (tmp_path / "best.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["state_dict", "current_model_state", "optimizer_states"])
def test_a_checkpoint_with_a_non_finite_value_is_refused(tmp_path, part):
    train(tmp_path, budget=replace(BUDGET, max_steps=2))
    found = contents(tmp_path)
    tensors = found[part][0]["state"][0] if part == "optimizer_states" else found[part]
    name = "exp_avg" if part == "optimizer_states" else next(k for k in tensors if "weight" in k)
    tensors[name].view(-1)[0] = float("nan")
    torch.save(found, tmp_path / "last.ckpt")
    for call in (read_checkpoint, lambda path: load_model(path, torch.device("cpu")), lambda path: train(path.parent)):
        said = refused(call, tmp_path / "last.ckpt")
        assert said.startswith(f"{tmp_path / 'last.ckpt'}: {part}.") and "holds NaN or infinite values" in said


def test_non_finite_samples_are_refused():
    model = DiffusionModel(model_options(), 1, 2).eval()
    label = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    assert torch.isfinite(samples(model, label, [0], **SAMPLER)).all()
    next(model.network.parameters()).data.fill_(float("nan"))
    assert "the model's samples contain NaN or infinite values" in refused(samples, model, label, [0], **SAMPLER)


def test_a_volume_of_nan_does_not_become_integers():
    np.testing.assert_array_equal(as_stored(np.float32([-1e9, 1.6]), np.dtype(np.int16)), [-(2**15), 2])
    assert "NaN or infinite" in refused(as_stored, np.float32([0, np.nan]), np.dtype(np.int16))


def test_a_codec_that_diverges_is_not_saved(tmp_path):
    options = model_options(codec="kl") | {
        "codec": {"name": "kl", "channels": [4, 4], "latent_channels": 2, "max_steps": 4, "learning_rate": 1e30}
    }
    said = refused(train, tmp_path, card=replace(CARD, options=options))
    assert "of the first stage" in said and "lower codec.learning_rate" in said
    assert not (tmp_path / "codec.ckpt").exists() and not (tmp_path / "last.ckpt").exists()


SMALL = SegmenterOptions(channels=[4, 8], batch_size=2, num_workers=0)


def test_a_segmenter_that_diverges_is_refused_when_trained_applied_and_read(tmp_path):
    cases = make_cases(3, 0)
    said = refused(train_segmenter, TrainingSet(cases), 2, replace(SMALL, learning_rate=1e30), 6, 0, "judge")
    assert said.startswith("judge: its loss or a weight is NaN or infinite") and "segmenter.learning_rate=1e+30" in said
    net = build_unet(1, 2, SMALL.channels)
    save_segmenter(net, tmp_path / "judge.pt")
    assert not_finite(load_segmenter(tmp_path / "judge.pt", 1, 2, SMALL.channels).state_dict()) is None
    next(net.parameters()).data.fill_(float("nan"))
    assert "a segmenter's output is NaN or infinite" in refused(segment, net, cases[0].image)
    save_segmenter(net, tmp_path / "judge.pt")
    assert str(tmp_path / "judge.pt") in refused(load_segmenter, tmp_path / "judge.pt", 1, 2, SMALL.channels)
