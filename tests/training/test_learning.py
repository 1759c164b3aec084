"""Every task learns, on small phantoms: two tissues with a smooth border, and a ball of a third tissue."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from helpers import model_options, samples
from scipy.ndimage import gaussian_filter
from scipy.stats import energy_distance

from medaug.diffusion.inpainting import Inpainting
from medaug.evaluation.images import psnr
from medaug.evaluation.scores import dice
from medaug.evaluation.uncertainty import auroc, entropy
from medaug.training.model import Context, DiffusionModel, Dropout
from medaug.training.tasks import resolve_task

pytestmark = pytest.mark.slow

SIDE = 16
MODALITIES = ("T1", "T2")
SAMPLING = {"guidance_scale": 1.0, "sampler": "ddim", "num_inference_steps": 6}


def phantom(rng):
    """T1 and T2 (2, X, Y, Z) show two tissues and a ball, each in a contrast of its own; the label is the ball."""
    tissue = gaussian_filter(rng.standard_normal((SIDE,) * 3), 3, mode="wrap") > 0
    centre, radius = rng.uniform([4, 5, 5], [8, 11, 11]), rng.uniform(2.5, 4)
    ball = radius**2 > ((np.indices((SIDE,) * 3).T - centre) ** 2).sum(-1).T
    images = [np.where(ball, b, np.where(tissue, a, c)) for a, b, c in ((0.5, -0.6, -0.1), (-0.4, 0.6, 0.1))]
    return np.stack(images) + 0.04 * rng.standard_normal((2, SIDE, SIDE, SIDE)), ball


@cache
def phantoms(number, seed):
    rng = np.random.default_rng(seed)
    images, balls = zip(*(phantom(rng) for _ in range(number)), strict=True)
    return {
        "image": torch.from_numpy(np.stack(images)).float(),
        "label": torch.from_numpy(np.stack(balls)).long(),
        "labelled": torch.ones(number).bool(),
        "seed": torch.arange(number) + 1000 * seed,
    }


def trained(options, steps=150):
    """A model of the task, trained on 96 phantoms, most of all at noisy times, where only the condition helps."""
    process = {"noise_schedule": "rectified_flow", "prediction_type": "sample", "time_shift": 3.0}
    network = {"channels": [16, 32], "norm_num_groups": 8, "coordinates": True}
    torch.manual_seed(0)
    model = DiffusionModel(model_options(process, **network), 2, 2, "fp32", resolve_task(options, MODALITIES, 2))
    cohort = phantoms(96, 0)
    model.codec.fit(model.target(cohort))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        chosen = (torch.arange(8) + 8 * step) % 96
        batch = {key: value[chosen] for key, value in cohort.items()} | {"seed": torch.arange(8) + 8 * step}
        optimizer.zero_grad()
        model.loss(batch, Dropout(0.1)).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def sampled(model, fresh, seeds=None, **more):
    images = model.task.images_of(fresh["image"], fresh["seed"])
    seeds = range(len(images)) if seeds is None else seeds
    return samples(
        model, fresh["label"], seeds, context=Context(images if images.shape[1] else None), **(SAMPLING | more)
    )


FRESH = 6


def test_translation_beats_the_mean_image_and_uses_its_input():
    model, fresh = trained({"mask": False, "modalities": ["T2"], "given": ["all"]}, 120), phantoms(FRESH, 1)
    truth, result = fresh["image"][:, 1:], sampled(model, fresh)
    error = (result - truth).square().mean()
    assert error < 0.3 * (phantoms(96, 0)["image"][:, 1:].mean(0) - truth).square().mean()
    assert error < 0.3 * (result.roll(1, 0) - truth).square().mean()


def gains(options, steps):
    """PSNR of the result minus that of the input, dB, per phantom and modality."""
    model, fresh = trained({"mask": False} | options, steps), phantoms(FRESH, 1)
    given, result = (
        x.flatten(0, 1).numpy()
        for x in (model.task.images_of(fresh["image"], fresh["seed"]), sampled(model, fresh, num_inference_steps=2))
    )
    truth = model.task.target_of(fresh["image"], fresh["label"]).flatten(0, 1).numpy()
    return [psnr(r, t) - psnr(g, t) for g, r, t in zip(given, result, truth, strict=True)]


def test_denoising_removes_noise():
    assert min(gains({"degradation": "noise", "noise_std": 0.5}, 100)) > 3


def test_super_resolution_beats_trilinear_interpolation():
    better = gains({"degradation": "low_resolution", "factor": 2, "modalities": ["T1"]}, 500)
    assert min(better) > 0 and np.mean(better) > 0.2


def test_segmentation_finds_the_ball_and_is_uncertain_where_it_is_wrong():
    model, fresh = trained({"target": "label", "mask": False, "given": ["all"]}), phantoms(FRESH, 1)
    hard = fresh | {
        "image": fresh["image"] + 0.25 * torch.randn(fresh["image"].shape, generator=torch.Generator().manual_seed(0))
    }
    votes = torch.stack([model.task.label_of(sampled(model, hard, range(k, k + 100 * FRESH, 100))) for k in range(6)])
    shares = votes.float().mean(0).numpy()
    truth = fresh["label"].numpy().astype(bool)
    scores = [dice(shares[i] > 0.5, truth[i]) for i in range(FRESH)]
    unsure = entropy(np.stack([1 - shares, shares]))
    assert min(scores) > 0.7
    assert auroc(unsure, (shares > 0.5) != truth) > 0.8


def test_generated_masks_have_volumes_and_positions_of_training_masks():
    model, blank = trained({"target": "label", "mask": False}, 150), torch.zeros(32, SIDE, SIDE, SIDE).long()

    def features(masks):
        places = torch.stack(torch.meshgrid(*[torch.arange(SIDE).float()] * 3, indexing="ij"))
        volume = masks.float().flatten(1).sum(1).clamp(min=1)
        centres = (masks[:, None] * places).flatten(2).sum(2) / volume[:, None]
        return torch.cat([volume[:, None], centres], 1).numpy()

    def distance(a, b):
        return [energy_distance(a[:, i], b[:, i]) for i in range(4)]

    made = features(model.task.label_of(samples(model, blank, range(32), **SAMPLING)))
    noise = features((torch.randn(32, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) > 0).long())
    training = features(phantoms(96, 0)["label"])
    ours, theirs = distance(made, training), distance(noise, training)
    assert all(a < 0.6 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)
    assert abs(made[:, 0].mean() / training[:, 0].mean() - 1) < 0.25
    assert (made[:, 1:].std(0) > 0.4 * training[:, 1:].std(0)).all(), "not always in the same place"


def test_inpainting_continues_the_surroundings():
    """The mask says nothing about the tissues: their border is known only from outside the region."""
    model, fresh = trained({"modalities": ["T1"]}, 200), phantoms(FRESH, 1)
    region = torch.zeros(FRESH, 1, SIDE, SIDE, SIDE, dtype=torch.bool)
    region[..., 10:14, 4:12, 4:12] = True
    known = fresh["image"][:, :1]
    plain, filled = sampled(model, fresh), sampled(model, fresh, inpainting=Inpainting(known, region, 4))
    errors = [(image - known)[region].square().mean() for image in (plain, filled)]
    assert errors[1] < 0.5 * errors[0]
    # Without the ball in its mask the region looks like the tissues, -0.1 and 0.5, and the ball was -0.6.
    ball, healthy = fresh["label"][:, None].bool(), fresh | {"label": torch.zeros_like(fresh["label"])}
    assert known[ball].mean() < -0.5
    assert sampled(model, healthy, inpainting=Inpainting(known, ball, 4))[ball].mean() > -0.15
