"""Scans with soft labels of teachers in the training of a generator: batches, condition and loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from test_attribute_learning import SCANS, made
from test_model import SHAPE, make_batch, make_model

from medaug.data.attributes import NO_ATTRIBUTES, with_label_source
from medaug.data.batches import SoftBatches, TrainingBatches
from medaug.data.transforms import light_affine
from medaug.networks.condition import signed_planes
from medaug.options import TrainerOptions
from medaug.training.model import Dropout
from medaug.training.module import training_batches


def taught(case, probabilities, trust=1.0):
    """A scan without a label, with the soft label of a teacher."""
    soft = np.rint(255 * np.asarray(probabilities)).astype(np.uint8)
    return replace(case, case=replace(case.case, label=None), label=None, soft=soft, trust=trust)


CERTAIN = [np.stack([case.label == value for value in (0, 1)]) for case in SCANS]


def test_a_certain_soft_label_trains_like_a_human_label():
    pseudo = [taught(case, planes) for case, planes in zip(SCANS, CERTAIN, strict=True)]
    human, soft = (SoftBatches(cases, 60, 0, num_classes=2)[0] for cases in (SCANS, pseudo))
    assert set(human) == set(soft) and all(torch.equal(human[key], soft[key]) for key in human)
    assert torch.equal(human["soft"], signed_planes(human["label"], 2)) and human["trust"].eq(1).all()
    plain = TrainingBatches(SCANS, 60, 0)[0]
    assert all(torch.equal(plain[key], human[key]) for key in plain)
    model, _ = made(randomised=True)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(human, Dropout(0.3)), model.loss(plain, Dropout(0.3)))


def test_soft_labels_move_with_the_image():
    pseudo = [taught(case, planes) for case, planes in zip(SCANS, CERTAIN, strict=True)]
    human, soft = (SoftBatches(cases, 60, 0, light_affine, num_classes=2)[0] for cases in (SCANS, pseudo))
    assert torch.equal(human["image"], soft["image"]) and torch.equal(human["seed"], soft["seed"])
    moved = (human["image"] != TrainingBatches(SCANS, 60, 0)[0]["image"]).flatten(1).any(1)
    assert 10 < moved.sum() < 50 and (human["label"] == soft["label"]).float().mean() > 0.98
    assert soft["trust"][~moved].eq(1).all() and soft["trust"][moved].amin() < 0.7, "borders become uncertain"


def test_the_loss_counts_voxels_and_scans_as_they_are_trusted_unless_the_mask_is_hidden():
    model, batch = make_model(codec="identity"), make_batch(2)
    soft = batch | {
        "soft": signed_planes(batch["label"], 3),
        "trust": torch.ones(2, *SHAPE),
        "scan_trust": torch.ones(2),
    }
    with torch.no_grad():
        plain = model.loss(batch)
        torch.testing.assert_close(model.loss(soft), plain)
        torch.testing.assert_close(
            model.loss(soft | {"scan_trust": torch.tensor([1.0, 0.25])}) / plain, torch.tensor([1, 0.25])
        )
        half = torch.zeros(2, *SHAPE)
        half[:, :4] = 1
        one, other = (model.loss(soft | {"trust": trust}) for trust in (half, 1 - half))
        torch.testing.assert_close((one + other) / 2, plain, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(one, plain)
        hidden = soft | {"trust": half, "scan_trust": torch.full((2,), 0.25)}
        torch.testing.assert_close(model.loss(hidden, Dropout(1.0)), model.loss(batch, Dropout(1.0)))


def test_the_condition_says_whose_label_it_is_and_pairs_have_human_masks():
    encoder = with_label_source(NO_ATTRIBUTES)
    human, teacher = (
        encoder.encode(encoder.of(case.case, case.affine)) for case in (SCANS[0], taught(SCANS[0], CERTAIN[0]))
    )
    assert human.tolist() == [1, 0, 1] and teacher.tolist() == [0, 1, 1]
    assert encoder.of(SCANS[0].case, SCANS[0].affine) == {"label_source": "human"}
    unsure = [taught(case, np.full((2, *case.label.shape), 0.5), 0.3) for case in SCANS[:30]]
    for share in (None, 0.5):
        batches = training_batches(
            [*SCANS[30:], *unsure], TrainerOptions(batch_size=8, labelled_share=share), attributes=encoder
        )
        batch = batches[0]
        source = batch["attributes"][:, 1].bool()
        assert batch["labelled"].all() and 0 < source.sum() < 8
        assert (batch["scan_trust"] == torch.where(source, 0.3, 1.0)).all()
        assert batch["trust"][source].amax() < 0.02 and batch["trust"][~source].eq(1).all()
    assert "soft" not in training_batches(SCANS, TrainerOptions())[0]
