"""A training on patches: it resumes exactly, its model samples whole volumes, and bad patches get one line."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_same_bits, model_options
from test_plan import make_cases

from medaug.cohort.schema import LabelSchema
from medaug.config import load_options
from medaug.data.patches import Patches, find_classes
from medaug.data.preprocessing import Preprocessing
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.options import SamplerOptions, TrainerOptions
from medaug.training.checkpoint import Card, load_model
from medaug.training.checks import check_overlap
from medaug.training.data import TrainingData, _check_grid, _find_patches, check_patch
from medaug.training.fit import fit
from medaug.training.initial import initialise
from medaug.training.plan import make_plan

GRID, PATCH = (16, 12, 8), (8, 8, 8)
SCHEMA = LabelSchema(((0, "background"), (1, "organ"), (2, "lesion")))
BUDGET = TrainerOptions(
    schedule="constant",
    batch_size=2,
    warmup_steps=1,
    validate_every=2,
    checkpoint_every=2,
    num_workers=0,
    accelerator="cpu",
    precision="fp32",
)


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    label = np.zeros(GRID, np.uint8)
    label[2:14, 2:10, 2:6] = 1
    label[3, 3, 3] = 2
    return [replace(c, image=rng.random((1, *GRID), np.float32) * 2 - 1, label=label) for c in make_cases(4)]


@pytest.fixture(scope="module")
def data(cases):
    patches = Patches(PATCH, (2, 2, 2), 0.5, {c.case.name: find_classes(c.label, 3, 0) for c in cases})
    options = model_options() | {"data": {"patch": list(PATCH)}}
    subjects = {"train": ["0", "1", "2"], "val": ["3"]}
    card = Card("toy", options, Preprocessing(GRID, None, (0.0, 100.0)), SCHEMA, ("T1",), subjects, True)
    return TrainingData(card, cases[:3], cases[3:], patches)


@pytest.mark.slow
def test_a_stopped_training_on_patches_ends_with_the_same_bits_and_its_model_samples_whole_volumes(data, tmp_path):
    for folder, limits in (("whole", (4,)), ("stopped", (2, 4))):
        for steps in limits:
            (tmp_path / folder).mkdir(exist_ok=True)
            fit(data, tmp_path / folder, replace(BUDGET, max_steps=steps), "csv")
    files = [tmp_path / folder / "last.ckpt" for folder in ("whole", "stopped")]
    assert_same_bits(*(torch.load(file, weights_only=True) for file in files))
    card, model = load_model(files[0], torch.device("cpu"))
    assert card.options["data"]["patch"] == list(PATCH) and model.patch == PATCH
    label = torch.from_numpy(data.train[0].label).long()[None]
    made = model.sample(label, [0], Sampling(steps=2, overlap=0.25), Guidance(2.0))
    assert made.shape == (1, 1, *GRID) and torch.isfinite(made).all()
    check_overlap(model, SamplerOptions(overlap=0.25))
    begun = initialise(card.build(), files[0])
    assert begun.loaded == begun.total and begun.new == ()


def test_the_plan_says_the_memory_of_a_patch_and_of_a_whole_volume(data):
    plan = make_plan(data, replace(BUDGET, max_steps=4))
    text = "\n".join(plan.lines())
    assert "grid 16x12x8, a patch of 8x8x8 from each" in text and "with whole volumes it would be" in text
    whole = replace(data, patches=None, card=replace(data.card, options=model_options(coordinates=True)))
    activations = make_plan(whole, replace(BUDGET, max_steps=4)).activations
    assert 3 * plan.activations == pytest.approx(activations, rel=0.1)


@pytest.mark.parametrize(
    "words,message",
    [
        (["data.patch=[48,44,48]"], "multiples of 8; such as [48,48,48]"),
        (["data.patch=[16,16,16]", "network=unet2d"], "a 2D network is trained on slices"),
    ],
)
def test_a_patch_that_codec_or_network_cannot_use_is_refused_in_one_line(words, message):
    with pytest.raises(UserError) as caught:
        check_patch(load_options("train", ["experiment=demo", "preset=smoke", *words]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_patch_larger_than_the_grid_and_a_grid_of_broken_blocks_are_refused():
    options = load_options("train", ["experiment=demo", "preset=smoke", "data.patch=[32,32,32]"])
    with pytest.raises(UserError, match="larger than the model's grid 32x24x32"):
        _check_grid(options, (32, 24, 32))
    with pytest.raises(UserError, match="each side must be a multiple of 2"):
        _check_grid(options, (32, 33, 32))


def test_a_class_that_no_patch_holds_gets_a_warning(cases, caplog):
    options = load_options("train", ["experiment=demo", "preset=smoke", "data.patch=[8,8,8]"])
    with caplog.at_level(logging.WARNING):
        patches = _find_patches(options, {"train": cases[:3], "val": cases[3:]}, SCHEMA)
    assert [record.getMessage() for record in caplog.records] == [
        "data.patch=[8,8,8]: organ is larger than a patch in every training scan, so that no patch holds it as a whole"
    ]
    assert patches.classes.keys() == {"0", "1", "2", "3"} and patches.foreground == 0.5


def test_an_overlap_for_a_model_of_whole_volumes_is_refused(data):
    model = replace(data.card, options=model_options()).build()
    with pytest.raises(UserError, match="overlap=0.25: has no effect"):
        check_overlap(model, SamplerOptions(overlap=0.25))
