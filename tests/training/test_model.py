"""The loss and the samples are functions of their seeds, the mask matters, and training learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.errors import UserError
from medaug.training.model import DiffusionModel

SHAPE = (8, 8, 8)
PROCESSES = [
    {"noise_schedule": "rectified_flow", "prediction_type": "flow", "num_train_timesteps": 1000},
    {"noise_schedule": "linear", "prediction_type": "epsilon", "num_train_timesteps": 1000},
    {"noise_schedule": "cosine", "prediction_type": "v_prediction", "num_train_timesteps": 1000},
]


def make_options(process=PROCESSES[0], codec="haar", **network):
    return model_options(process, codec, **{"channels": [8, 16], "attention": [False, True]} | network)


def make_model(options=None, randomised=True, **more) -> DiffusionModel:
    torch.manual_seed(0)
    model = DiffusionModel(options or make_options(**more), num_modalities=1, num_classes=3, precision="fp32")
    if randomised:  # the output convolution starts at zero
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_batch(num=3, labelled=True):
    draw = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(num, 1, *SHAPE, generator=draw) * 2 - 1,
        "label": torch.randint(0, 3, (num, *SHAPE), generator=draw),
        "labelled": torch.full((num,), labelled),
        "seed": torch.arange(num) + 2**40,
    }


def one(batch, i):
    return {key: value[i : i + 1] for key, value in batch.items()}


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p["noise_schedule"])
@torch.no_grad()
def test_loss_is_a_function_of_the_samples_own_seed(process):
    model, batch = make_model(process=process), make_batch()
    together = model.loss(batch, 0.5)
    assert together.shape == (3,) and torch.isfinite(together).all()
    assert torch.equal(together, model.loss(batch, 0.5))
    alone = torch.cat([model.loss(one(batch, i), 0.5) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    other = model.loss(batch | {"seed": batch["seed"] + 10}, 0.5)
    assert ((together - other).abs() > 1e-3).all()


@torch.no_grad()
def test_dropped_and_missing_masks_are_the_null_condition():
    model, batch = make_model(), make_batch()
    other = batch | {"label": (batch["label"] + 1) % 3}
    assert ((model.loss(batch, 0.0) - model.loss(other, 0.0)).abs() > 1e-6).all()
    null = model.loss(batch, 1.0)
    assert torch.equal(null, model.loss(other, 1.0))
    unlabelled = batch | {"labelled": torch.zeros(3).bool()}
    assert torch.equal(null, model.loss(unlabelled, 0.0)), "the same times and noise, the same null condition"


@torch.no_grad()
def test_condition_dropout_takes_its_share():
    model, batch = make_model(), make_batch(1)
    many = {key: value.expand(200, *value.shape[1:]) for key, value in batch.items()} | {"seed": torch.arange(200)}
    same = torch.isclose(model.loss(many, 0.3), model.loss(many, 1.0), rtol=1e-6)
    assert 40 < int(same.sum()) < 80  # 60 on average, 3 standard deviations


@torch.no_grad()
def test_an_untrained_flow_loss_is_the_variance_of_its_target():
    """MONAI's network starts at zero, so the loss is the mean of (epsilon - x_0)^2 = 1 + 1."""
    model = make_model(randomised=False)
    image = torch.randn(64, 1, *SHAPE, generator=torch.Generator().manual_seed(3))
    batch = {key: value.expand(64, *value.shape[1:]) for key, value in make_batch(1).items()}
    loss = model.loss(batch | {"image": image, "seed": torch.arange(64)}, 0.1).mean()
    assert float(loss) == pytest.approx(2.0, rel=0.02)


SAMPLERS = [("dpmpp_2m", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)]


def draw_samples(model, label, seeds, sampler=SAMPLERS[0], scale=2.0):
    return model.sample(label, seeds, guidance_scale=scale, sampler=sampler[0], num_inference_steps=4, eta=sampler[1])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_sample_is_a_function_of_its_own_seed_and_mask(sampler):
    model, label = make_model(process=PROCESSES[2]), make_batch()["label"]
    together = draw_samples(model, label, [5, 6, 7], sampler)
    assert together.shape == (3, 1, *SHAPE) and together.min() >= -1 and together.max() <= 1
    for i, seed in enumerate([5, 6, 7]):
        torch.testing.assert_close(
            draw_samples(model, label[i : i + 1], [seed], sampler), together[i : i + 1], atol=1e-3, rtol=1e-3
        )
    other = draw_samples(model, label, [5, 8, 7], sampler)
    torch.testing.assert_close(other[[0, 2]], together[[0, 2]], atol=1e-3, rtol=1e-3)
    assert (other[1] - together[1]).abs().max() > 0.1


def test_guidance_zero_ignores_the_mask_and_any_other_scale_does_not():
    model, label = make_model(), make_batch()["label"]
    changed = (label + 1) % 3

    def difference(scale):
        return (
            draw_samples(model, label, [1, 2, 3], scale=scale) - draw_samples(model, changed, [1, 2, 3], scale=scale)
        ).abs()

    assert not difference(0.0).any()
    assert difference(1.0).max() > 1e-4
    assert difference(3.0).max() > difference(1.0).max()


def test_sampling_leaves_the_global_random_stream_alone():
    model, label = make_model(), make_batch(1)["label"]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model.loss(make_batch(), 0.1)
    draw_samples(model, label, [1], ("ddpm", 0.0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        (make_options(codec="wavelet"), "fp32"),
        (make_options(process=PROCESSES[0] | {"prediction_type": "epsilon"}), "fp32"),
        (make_options(norm_num_groups=3), "fp32"),
        (make_options(), "fp16"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options, precision):
    with pytest.raises(UserError) as caught:
        DiffusionModel(options, 1, 3, precision)
    assert "\n" not in str(caught.value)


def toy_sample(rng):
    """A box somewhere; the image is bright in it and dark outside."""
    label = np.zeros(SHAPE, np.int64)
    low = rng.integers(0, 5, 3)
    label[tuple(slice(a, a + rng.integers(3, 5)) for a in low)] = 1
    return torch.from_numpy(np.where(label == 1, 0.6, -0.6)).float()[None], torch.from_numpy(label)


@pytest.mark.slow
def test_training_learns_what_the_mask_says():
    rng = np.random.default_rng(0)
    images, labels = map(torch.stack, zip(*(toy_sample(rng) for _ in range(200)), strict=True))
    model = make_model(randomised=False, channels=[16, 32])
    model.codec.fit(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(200):
        chosen = torch.arange(8) + 8 * step
        batch = {
            "image": images[chosen % 200],
            "label": labels[chosen % 200],
            "labelled": torch.ones(8).bool(),
            "seed": chosen,
        }
        loss = model.loss(batch, 0.1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])
    fresh = torch.stack([toy_sample(rng)[1] for _ in range(8)])
    sampled = model.sample(fresh, range(8), guidance_scale=1.0, sampler="dpmpp_2m", num_inference_steps=10)

    def agreement(masks):
        pairs = zip(sampled.flatten(1), masks.flatten(1), strict=True)
        return np.mean([np.corrcoef(image, mask)[0, 1] for image, mask in pairs])

    assert agreement(fresh) > 0.6
    assert agreement(fresh) > agreement(fresh.roll(1, 0)) + 0.25, "boxes overlap, so chance is above zero"
