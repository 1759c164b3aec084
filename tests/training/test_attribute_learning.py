"""Attributes in training: hidden by the sample's own seed, and what the model learns from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import model_options, samples

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import fit_attributes
from medaug.data.batches import TrainingBatches
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.training.checkpoint import Card
from medaug.training.model import Context, Dropout

SIDES = (8, 8, 1)
SCHEMA = LabelSchema(((0, "background"), (1, "box")))


def scan(index: int) -> ModelCase:
    """A slice with a box, bright on dark at site A, dark on bright at site B; the site of every seventh is unknown."""
    rng = np.random.default_rng(index)
    label = np.zeros(SIDES, np.uint8)
    low = rng.integers(0, 4, 2)
    label[low[0] : low[0] + rng.integers(3, 5), low[1] : low[1] + rng.integers(3, 5)] = 1
    bright = (label == 1) == (index % 2 == 0)
    attributes = {} if index % 7 == 0 else {"site": "AB"[index % 2], "grade": float(index % 3)}
    case = Case(f"c{index}", ("i.nii",), "l.nii", f"s{index}", "train", attributes)
    placement = Placement(SIDES, ((0, 1), (1, 1), (2, 1)), SIDES, (0.0,), (1.0,))
    image = np.where(bright, 0.6, -0.6).astype(np.float32)[None]
    return ModelCase(case, image, label, np.diag([1, 1, 1 + index % 2, 1]), np.dtype("f4"), placement)


SCANS = [scan(index) for index in range(60)]


def made(*names: str, randomised: bool, batch_size: int = 8):
    encoder = fit_attributes(names, [(s.case, s.affine) for s in SCANS])
    options = model_options(spatial_dims=2, channels=[16, 32], num_head_channels=16)
    space = Preprocessing(SIDES, (1.0, 1.0, 1.0), (0.5, 99.5))
    torch.manual_seed(0)
    model = Card("toy", options, space, SCHEMA, ("MR",), {}, phantom=False, attributes=encoder).build()
    if randomised:  # the output convolution starts at zero
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model, TrainingBatches(SCANS, batch_size, 0, attributes=encoder)


@torch.no_grad()
def test_attributes_are_hidden_independently_by_sample_and_attribute():
    model, batches = made("site", "grade", "spacing", randomised=True)
    batch = batches[0]
    known, hidden = (
        model.loss(batch),
        model.loss(batch | {"attributes": torch.zeros(8, model.attributes.size)}),
    )
    assert (known != hidden).all(), "at least the voxel size is known for every scan"
    torch.testing.assert_close(model.loss(batch, Dropout(attributes=1.0)), hidden)
    half = model.loss(batch, Dropout(attributes=0.5))
    alone = torch.cat(
        [model.loss({key: v[i : i + 1] for key, v in batch.items()}, Dropout(attributes=0.5)) for i in range(8)]
    )
    torch.testing.assert_close(half, alone)
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    by_mask = [
        model.loss(batch | {"attributes": model.attributes.hide(batch["attributes"], mask.expand(8, 3))})
        for mask in masks
    ]
    which = torch.stack(by_mask).sub(half).abs().argmin(0)
    torch.testing.assert_close(torch.stack(by_mask)[which, torch.arange(8)], half)
    assert len(which.unique()) > 3, "not all samples and attributes share one draw"


@pytest.mark.slow
def test_samples_have_the_contrast_of_the_given_site():
    model, batches = made("site", randomised=False, batch_size=16)
    model.codec.fit(torch.from_numpy(s.image) for s in SCANS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        loss = model.loss(batches[step], Dropout(condition=0.1, attributes=0.1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = torch.stack([torch.from_numpy(scan(index).label) for index in range(100, 112)]).long()

    def contrasts(**known):
        """Of each sample, box less background, as a share of the 1.2 of its site."""
        vector = model.attributes.encode(known).expand(len(fresh), -1)
        images = samples(
            model,
            fresh,
            range(12),
            guidance_scale=1.0,
            sampler="dpmpp_2m",
            num_inference_steps=10,
            context=Context(attributes=vector),
        )
        pairs = zip(images[:, 0], fresh, strict=True)
        return np.array([float(image[box == 1].mean() - image[box == 0].mean()) / 1.2 for image, box in pairs])

    at_a, at_b = contrasts(site="A"), contrasts(site="B")
    assert (at_a > 0).sum() >= 9 and at_a.mean() > 0.4
    assert (at_b < 0).sum() >= 9 and at_b.mean() < -0.4
    assert abs(np.sign(contrasts()).sum()) < 12, "without the site, samples have both contrasts"
