"""A small model learns to follow its mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import model_options, samples

from medaug.training.model import DiffusionModel, Dropout

SHAPE = (8, 8, 8)
RECTIFIED_FLOW = {"noise_schedule": "rectified_flow", "prediction_type": "flow", "num_train_timesteps": 1000}
EDM = {"noise_schedule": "edm", "prediction_type": "edm", "num_train_timesteps": None}
ZERO_TERMINAL_SNR = {
    "noise_schedule": "linear",
    "prediction_type": "v_prediction",
    "zero_terminal_snr": True,
    "loss_weight": "min_snr",
}


def toy_sample(rng):
    """A box somewhere; the image is bright in it and dark outside."""
    label = np.zeros(SHAPE, np.int64)
    low = rng.integers(0, 5, 3)
    label[tuple(slice(a, a + rng.integers(3, 5)) for a in low)] = 1
    return torch.from_numpy(np.where(label == 1, 0.6, -0.6)).float()[None], torch.from_numpy(label)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "fall"),
    [(RECTIFIED_FLOW, 0.75), (EDM, 0.85), (ZERO_TERMINAL_SNR, 0.75)],
    ids=["rectified_flow", "edm", "zero_terminal_snr"],
)
def test_training_learns_to_follow_the_mask(process, fall):
    rng = np.random.default_rng(0)
    images, labels = map(torch.stack, zip(*(toy_sample(rng) for _ in range(200)), strict=True))
    torch.manual_seed(0)
    options = model_options(process, channels=[16, 32], attention=[False, True])
    model = DiffusionModel(options, num_modalities=1, num_classes=3, precision="fp32")
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
        loss = model.loss(batch, Dropout(0.1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < fall * np.mean(losses[:5])
    fresh = torch.stack([toy_sample(rng)[1] for _ in range(8)])
    sampled = samples(model, fresh, range(8), guidance_scale=1.0, sampler="dpmpp_2m", num_inference_steps=10)

    def agreement(masks):
        pairs = zip(sampled.flatten(1), masks.flatten(1), strict=True)
        return np.mean([np.corrcoef(image, mask)[0, 1] for image, mask in pairs])

    assert agreement(fresh) > 0.6
    assert agreement(fresh) > agreement(fresh.roll(1, 0)) + 0.25, "boxes overlap, so chance is above zero"
