"""The generator's network as a segmenter: which weights it begins with, and what it is refused for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.comparison.arms import ARMS
from medaug.comparison.material import Material
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.options import SegmenterOptions
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.denoiser import build_denoiser
from medaug.segmentation.protocol import Problem, TrainingSet
from medaug.training.checkpoint import Card

SIDE = 10  # no multiple of what codec and network need
SCHEMA = LabelSchema(((0, "background"), (1, "dim"), (2, "bright")))
TINY = SegmenterOptions(batch_size=2, learning_rate=5e-3, num_workers=0)


def case(index: int) -> ModelCase:
    rng = np.random.default_rng(index)
    label = np.zeros((SIDE,) * 3, np.uint8)
    x, y, z = rng.integers(1, 4, 3)
    label[x : x + 3, y : y + 5, z : z + 5] = 1
    label[x + 3 : x + 6, y : y + 5, z : z + 5] = 2
    image = np.array([-0.8, 0.1, 0.8])[label] + rng.normal(0, 0.1, label.shape)
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    about = Case(f"c{index}", ("a.nii.gz",), "b.nii.gz", f"s{index}")
    return ModelCase(about, image[None].astype(np.float32), label, np.eye(4), np.dtype("f4"), placement)


CASES = [case(i) for i in range(4)]


def checkpoint(path, **changes):
    """A checkpoint whose weights are all different from those of a new model."""
    options = model_options(**{k: v for k, v in changes.items() if k != "task"})
    if "task" in changes:
        options["task"] = changes["task"]
    card = Card("toy", options, Preprocessing((SIDE,) * 3, None), SCHEMA, ("T1",), {}, False)
    torch.manual_seed(1)
    model = card.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"medaug": card.to_dict(), "state_dict": weights}, path)
    return path, model


@pytest.fixture
def generator(tmp_path):
    return checkpoint(tmp_path / "last.ckpt")


def problem(path) -> Problem:
    return Problem(("T1",), SCHEMA, Preprocessing((SIDE,) * 3, None), path)


def test_a_pretrained_network_has_the_generators_weights_in_every_layer_but_the_last(generator):
    path, model = generator
    trained, untrained = (build_denoiser(path, flag, 1, 3, ()) for flag in (True, False))
    own = trained.state_dict()
    for name, value in model.state_dict().items():
        if "unet.out.2" not in name:
            assert torch.equal(own[f"model.{name}"], value), name
    new = dict(untrained.named_parameters())
    assert all(not torch.equal(new[name], value) for name, value in trained.named_parameters())
    image = torch.from_numpy(np.stack([case.image for case in CASES]))
    assert trained(image).shape == (4, 3, SIDE, SIDE, SIDE)


def test_hidden_features_are_those_of_the_generator_for_the_null_condition(generator):
    path, model = generator
    net = build_denoiser(path, True, 1, 3, ()).eval()
    image, kept = torch.from_numpy(CASES[0].image)[None], []
    for network in (net.model.network, model.network):
        network.unet.middle_block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        net(image)
        null = model.condition(torch.ones(1, SIDE, SIDE, SIDE), torch.zeros(1, 2))
        model.predict(model.codec.encode(image), torch.tensor([0.1]), null)
    torch.testing.assert_close(kept[0], kept[1])


def test_training_moves_all_weights_but_the_codecs_and_a_file_gives_the_same_segmenter(generator, tmp_path):
    path, _ = generator
    segmenter, again = (BACKENDS["denoiser"].make(problem(path), TINY) for _ in range(2))
    segmenter.fit(TrainingSet(CASES, augment=None, pretrained=True), 2, 0, "toy")
    start = dict(build_denoiser(path, True, 1, 3, ()).named_parameters())
    still = [name for name, value in segmenter.net.named_parameters() if torch.equal(value, start[name])]
    assert not [name for name in still if "codec" not in name and "unet.out.2" not in name]
    segmenter.save(tmp_path / "segmenter.pt")
    again.load(tmp_path / "segmenter.pt")
    np.testing.assert_array_equal(segmenter.segment(CASES[0].image), again.segment(CASES[0].image))
    assert segmenter.features(CASES[0].image).shape == (8,)


@pytest.mark.slow
def test_an_easy_problem_is_learned(generator):
    segmenter = BACKENDS["denoiser"].make(problem(generator[0]), replace(TINY, batch_size=4))
    segmenter.fit(TrainingSet([case(i) for i in range(16)], augment=None), 150, 0, "toy")
    unseen = [case(100 + i) for i in range(4)]
    hits = [(segmenter.segment(one.image) == one.label)[one.label > 0].mean() for one in unseen]
    assert np.mean(hits) > 0.9


def test_the_two_arms_differ_in_the_start_alone():
    material = Material(CASES, [], 0.5, SCHEMA)
    network, start = (ARMS[name] for name in ("generator_network", "generator_start"))
    assert replace(start, baseline=network.baseline, pretrained=False) == network
    sets = [arm.training_set(material) for arm in (network, start)]
    assert [one.pretrained for one in sets] == [False, True] and sets[0].real == sets[1].real


def test_what_cannot_be_a_segmenter_is_refused(tmp_path):
    with pytest.raises(UserError, match="the experiment's generator, and there is none"):
        BACKENDS["denoiser"].make(problem(None), TINY)
    path, _ = checkpoint(tmp_path / "mask.ckpt", task={"target": "label", "mask": False})
    with pytest.raises(UserError, match="must generate whole images of all modalities from masks alone"):
        build_denoiser(path, False, 1, 3, ())
