"""Masks of a mask generator: reproducible, rejected if unlike training masks, and without leaks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis import recipes
from medaug.synthesis.deformed import DeformedMasks
from medaug.synthesis.masks import ImageModel, TrainingMasks
from medaug.synthesis.recipes import Recipes, check_task
from medaug.synthesis.sources import load_masks
from medaug.training.checkpoint import Card

SIDE = 8
CPU = torch.device("cpu")
SCHEMA = LabelSchema(((0, "background"), (1, "organ"), (2, "lesion")))
SAMPLER = SamplerOptions(num_inference_steps=2)
GENERATOR = {"target": "label", "mask": False}
SUBJECTS = {"train": ["A", "B"], "val": ["V"]}


def card_of(task, **changes) -> Card:
    space = Preprocessing((SIDE,) * 3, (1.0, 1.0, 1.0))
    card = Card("toy", model_options() | {"task": task}, space, SCHEMA, ("T1", "T2"), SUBJECTS, False)
    return dataclasses.replace(card, **changes)


def saved(folder: Path, task=GENERATOR, **changes) -> str:
    card = card_of(task, **changes)
    model = card.build()
    for i, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"medaug": card.to_dict(), "state_dict": weights}, folder / "masks.ckpt")
    return str(folder / "masks.ckpt")


def label(organ=slice(2, 6), lesion=slice(3, 5)) -> np.ndarray:
    mask = np.zeros((SIDE,) * 3, np.uint8)
    mask[organ, organ, organ] = 1
    mask[lesion, lesion, lesion] = 2
    return mask


SPLITS = {"train": "ABC", "val": "V", "test": "T"}
COHORT = Manifest(
    "toy",
    "",
    ("T1", "T2"),
    SCHEMA,
    tuple(Case(f"case_{s}", ("a", "b"), "l", s, split) for split, names in SPLITS.items() for s in names),
    "/nowhere",
)


def load(path, source="generated", sampler=SAMPLER, card=None):
    masks = MasksOptions(source=source, checkpoint=path)
    return load_masks(masks, ImageModel(card or card_of({}), COHORT, sampler, CPU))


def hosts():
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,) * 2, (1.0,) * 2)
    image = np.zeros((2, SIDE, SIDE, SIDE), np.float32)
    return [ModelCase(case, image, label(), np.eye(4), np.dtype("i2"), placement) for case in COHORT.split("train")]


def test_a_mask_is_a_function_of_its_seed_alone(tmp_path):
    generator = load(saved(tmp_path))
    one, again, other = (generator.make(label(), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.dtype == np.uint8 and one.shape == (SIDE,) * 3 and set(np.unique(one)) <= {0, 1, 2}
    assert (one != other).any()


def test_masks_unlike_all_training_masks_are_rejected(tmp_path):
    training = [label(), label(slice(1, 7), slice(3, 4)), label(slice(1, 7), slice(2, 5))]
    generator = load(saved(tmp_path)).fitted(TrainingMasks(training))
    assert generator.volumes == ((4**3 - 8, 6**3 - 1), (1, 27)) and not generator.at_border
    assert generator.rejection(label(), label()) is None
    assert generator.rejection(np.where(label() == 2, 0, label()), label()) == "class 2 is missing"
    assert generator.rejection(label(lesion=slice(1, 6)), label()) == "class 1 is missing"
    assert "class 2 has 64 voxels, and 1 to 27 in" in generator.rejection(label(slice(1, 7), slice(2, 6)), label())
    moved = label(organ=slice(0, 5))
    assert generator.rejection(moved, label()) == "the mask was cut by the border"
    assert generator.fitted(TrainingMasks([*training, moved])).rejection(moved, label()) is None
    without = np.where(label() == 2, 0, label())
    sometimes = generator.fitted(TrainingMasks([np.where(label() == 2, 1, label()), label(), without]))
    assert sometimes.rejection(without, label()) is None, "one training mask has no lesion either"


def test_the_recipe_counts_attempts_and_takes_only_the_grid_from_its_host(tmp_path, monkeypatch):
    generator = load(saved(tmp_path)).fitted(TrainingMasks([label()]))
    calls = []

    def make(self, label_of_host, seed):
        calls.append((label_of_host.shape, seed))
        return label() if len(calls) == 3 else np.zeros(label_of_host.shape, np.uint8)

    monkeypatch.setattr(type(generator), "make", make)
    write = Recipes(hosts(), generator, GenerateOptions(), SAMPLER, "generated", "images")
    recipe, host, mask = write(4)
    np.testing.assert_array_equal(mask, label())
    assert recipe.attempt == 2 and recipe.mask_source == "generated" and recipe.host == host.case.name
    assert recipe.mask_parameters == {"checkpoint": generator.checkpoint} and recipe.checkpoint == "images"
    assert len({seed for _, seed in calls}) == 3 and all(shape == (SIDE,) * 3 for shape, _ in calls)
    monkeypatch.setattr(type(generator), "make", lambda self, label, seed: np.zeros_like(label))
    monkeypatch.setattr(recipes, "MOST_ATTEMPTS", 3)
    with pytest.raises(UserError, match=r"pair 4, host case_.: no plausible mask in 3 attempts \(.*class 1 is missing"):
        write(4)


@pytest.mark.parametrize(
    ("made", "options", "complaint"),
    [
        ({"task": {}}, {}, "not a mask generator; give the checkpoint of a training with task=mask_generator"),
        ({"task": GENERATOR | {"given": ["all"]}}, {}, "not a mask generator"),
        (
            {"schema": LabelSchema(((0, "background"), (1, "organ"), (2, "cyst")))},
            {},
            "its labels are not those of toy",
        ),
        ({"preprocessing": Preprocessing((8, 8, 16), (1.0, 1.0, 1.0))}, {}, r"draws on the grid \(8, 8, 16\)"),
        ({"preprocessing": Preprocessing((8, 8, 8), (1.0, 1.0, 2.0))}, {}, r"\(1.0, 1.0, 2.0\) mm, and the images are"),
        ({"subjects": SUBJECTS | {"train": ["A", "T"]}}, {}, "leak: it saw T, not a training subject here"),
        ({"subjects": SUBJECTS | {"train": ["stranger"]}}, {}, "leak: it saw stranger, not a training subject here"),
        ({"subjects": SUBJECTS | {"val": ["T"]}}, {}, "leak: it saw T, not a training subject here"),
        ({"subjects": SUBJECTS | {"train": ["V"]}}, {}, "leak: it saw V, not a training subject here"),
        (
            {},
            {"sampler": SamplerOptions(spacing="karras")},
            "spacing karras cannot be used with rectified_flow",
        ),
    ],
)
def test_an_incompatible_generator_is_refused_with_one_line(tmp_path, made, options, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        load(saved(tmp_path, **made), **options)
    assert "\n" not in str(caught.value)


def test_a_generator_must_be_named_and_exist(tmp_path):
    with pytest.raises(UserError, match="masks=generated: needs masks.checkpoint=FILE"):
        load(None)
    with pytest.raises(UserError, match="no such checkpoint"):
        load(str(tmp_path / "absent.ckpt"))
    assert isinstance(load(None, source="deformed"), DeformedMasks)


def test_samples_are_not_scored_on_generated_masks():
    with pytest.raises(UserError, match="masks=generated: while a model trains, its samples are scored on deformed"):
        load_masks(MasksOptions(source="generated", checkpoint="masks.ckpt"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (GENERATOR, "generates masks, not images; give it to a model that generates images, with masks=generated"),
        (GENERATOR | {"given": ["all"]}, "apply it to scans with medaug.predict"),
        ({"mask": False}, "apply it to scans with medaug.predict"),
        ({"mask": True, "degradation": "noise"}, "apply it to scans with medaug.predict"),
        ({"modalities": ["T2"]}, "does not generate T1, which a pair needs"),
        ({}, None),
        ({"modalities": ["T2", "T1"]}, None),
    ],
)
def test_generate_accepts_only_mask_to_image_models_of_all_modalities(options, complaint):
    card = card_of(options)
    task = card.build().task
    if complaint is None:
        check_task(task, card, Path("last.ckpt"))
        assert task.generated == (0, 1), "in the cohort's order, which is that of the files"
    else:
        with pytest.raises(UserError, match=f"last.ckpt: .*{complaint}"):
            check_task(task, card, Path("last.ckpt"))
