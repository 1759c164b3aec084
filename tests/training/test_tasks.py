"""Targets and conditions of every task, and options that are refused."""

from __future__ import annotations

import pytest
import torch
from helpers import model_options, samples

from medaug.cohort.schema import IGNORE
from medaug.errors import UserError
from medaug.training.model import Context, DiffusionModel, Dropout
from medaug.training.tasks import resolve_task

MODALITIES = ("t1", "t2", "flair")
SHAPE = (8, 8, 8)
TRANSLATION = {"mask": False, "modalities": ["flair"], "given": ["all"]}
SEGMENTATION = {"target": "label", "mask": False, "given": ["all"]}
GENERATOR = {"target": "label", "mask": False}
DENOISE = {"mask": False, "degradation": "noise", "noise_std": 0.5}
COARSE = {"mask": False, "degradation": "low_resolution", "factor": 2}


def batch_of(num=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(num, 3, *SHAPE, generator=draw) * 2 - 1,
        "label": torch.randint(0, 3, (num, *SHAPE), generator=draw),
        "labelled": torch.ones(num).bool(),
        "seed": torch.arange(num) + 7,
    }


def model_of(options, **more):
    task = resolve_task(options, MODALITIES, 3)
    model = DiffusionModel(model_options(**more), 3, 3, "fp32", task)
    for i, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    return model


@pytest.mark.parametrize(
    ("options", "targets", "images", "masks"),
    [
        ({}, 3, 0, 2),
        ({"mask": False}, 3, 0, 0),
        (TRANSLATION, 1, 2, 0),
        (TRANSLATION | {"mask": True}, 1, 2, 2),
        ({"mask": False, "modalities": ["t1", "flair"], "given": ["t2"]}, 2, 1, 0),
        (DENOISE, 3, 3, 0),
        (COARSE | {"modalities": ["t1"], "given": ["all"]}, 1, 3, 0),
        (SEGMENTATION, 2, 3, 0),
        (GENERATOR, 2, 0, 0),
    ],
)
@torch.no_grad()
def test_every_task_trains_and_samples_its_targets(options, targets, images, masks):
    task = resolve_task(options, MODALITIES, 3)
    assert (task.num_targets, task.num_images, task.num_masks) == (targets, images, masks)
    model, batch = model_of(options), batch_of()
    assert model.loss(batch, Dropout(0.1, 0.1, 0.1)).isfinite().all()
    given = task.images_of(batch["image"], batch["seed"])
    assert given.shape == (2, images, *SHAPE)
    result = samples(
        model,
        batch["label"],
        [1, 2],
        guidance_scale=2.0 if images or masks else 1.0,
        sampler="ddim",
        num_inference_steps=2,
        context=Context(images=given),
    )
    assert result.shape == (2, targets, *SHAPE) and result.isfinite().all()


def test_a_label_map_comes_back_from_its_planes():
    task, label = resolve_task(GENERATOR, MODALITIES, 3), batch_of()["label"]
    planes = task.target_of(batch_of()["image"], label)
    assert set(planes.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(task.label_of(planes), label)
    assert torch.equal(task.label_of(0.1 * planes), label), "the sign is what counts"


def test_degradations_match_their_definitions():
    image, seeds = batch_of()["image"], [3, 4]
    noise = resolve_task(DENOISE, MODALITIES, 3).images_of(image, seeds) - image
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05) and abs(float(noise.mean())) < 0.03
    alone = resolve_task(DENOISE, MODALITIES, 3).images_of(image[1:], [4]) - image[1:]
    assert torch.equal(alone, noise[1:]), "noise is a function of the sample's seed"
    coarse = resolve_task(COARSE, MODALITIES, 3).images_of(image, seeds)
    blocks = image.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean((-1, -2, -3))
    torch.testing.assert_close(coarse, torch.nn.functional.interpolate(blocks, SHAPE, mode="trilinear"))
    assert torch.equal(resolve_task(DENOISE, MODALITIES, 3).images_of(image, seeds, degraded=False), image)


@torch.no_grad()
def test_output_depends_only_on_the_condition():
    """Translation depends on the given modalities and not on the mask, and its target is the generated one alone."""
    model, batch = model_of(TRANSLATION), batch_of()
    loss = model.loss(batch)
    assert torch.equal(loss, model.loss(batch | {"label": (batch["label"] + 1) % 3}))
    for modality in range(3):
        image = batch["image"].clone()
        image[:, modality] *= -1
        assert ((model.loss(batch | {"image": image}) - loss).abs() > 1e-6).all()
    hidden = model.loss(batch, Dropout(images=1.0))
    image = batch["image"].clone()
    image[:, :2] *= -1
    assert torch.equal(hidden, model.loss(batch | {"image": image}, Dropout(images=1.0)))
    assert torch.equal(hidden, model.loss(batch, Dropout(condition=1.0))), "without masks, images are the condition"


@torch.no_grad()
def test_classes_are_hidden_one_by_one_and_hidden_is_not_absent():
    model, one = model_of({}), batch_of(1)
    batch = {key: value.expand(300, *value.shape[1:]) for key, value in one.items()} | {"seed": torch.arange(300)}
    conditions = []
    model.predict = lambda x, t, condition: conditions.append(condition) or x
    model.loss(batch, Dropout(classes=0.25))
    flags = conditions[0].planes[:, -2:, 0, 0, 0]
    assert flags.unique().tolist() == [0.0, 1.0]
    shares = torch.stack([flags.mean(0)[0], flags.mean(0)[1], (flags.sum(1) == 1).float().mean()])
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.75, 2 * 0.75 * 0.25]), atol=0.08, rtol=0)
    planes = conditions[0].planes[:, : 2 * 8].unflatten(1, (2, 8))
    assert not planes[flags == 0].any(), "what is hidden is 0 everywhere"
    assert (planes[flags == 1].abs() == 1).all(), "what is absent is -1"


@torch.no_grad()
def test_ignored_voxels_do_not_count_if_the_label_is_the_target():
    model, batch = model_of(SEGMENTATION), batch_of()
    label = batch["label"].clone()
    label[:, :2, :2, :2] = IGNORE
    model.predict = lambda x, t, condition: torch.zeros_like(x)
    loss = model.loss(batch | {"label": label})
    corner = torch.zeros(1, 1, 4, 4, 4)
    corner[..., 0, 0, 0] = 9  # the ignored block alone
    model.predict = lambda x, t, condition: corner.expand_as(x)
    assert torch.equal(loss, model.loss(batch | {"label": label}))
    assert (loss < model.loss(batch)).all()
    everywhere = batch | {"label": torch.full_like(label, IGNORE)}
    assert not model.loss(everywhere).any()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"target": "label"}, "task.mask=false"),
        (GENERATOR | {"modalities": ["t1"]}, "task.target=label"),
        (GENERATOR | {"degradation": "noise"}, "task.target=label"),
        ({"modalities": ["t3"]}, "task.modalities: t3"),
        ({"given": ["t1"]}, "task.given: t1 is also generated"),
        ({"given": ["all"]}, "task.modalities"),
    ],
)
def test_impossible_tasks_are_refused_in_one_line(options, key):
    with pytest.raises(UserError, match="task") as refusal:
        resolve_task(options, MODALITIES, 3)
    assert key in str(refusal.value) and "\n" not in str(refusal.value)
