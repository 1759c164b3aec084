"""A model of patches on whole volumes: equal to the whole where it must be, for every way to sample."""

from __future__ import annotations

import pytest
import torch
from helpers import model_options
from torch import nn

from medaug.diffusion.guidance import Guidance
from medaug.diffusion.inpainting import Inpainting
from medaug.diffusion.samplers import SAMPLERS, Sampling
from medaug.networks.conditional import _positions
from medaug.training.model import Context, DiffusionModel
from medaug.training.tasks import resolve_task

GRID, PATCH = (16, 8, 12), [8, 8, 8]
LABEL = torch.randint(0, 3, (2, *GRID), generator=torch.Generator().manual_seed(3))
SEEDS = [5, 6]


class Pointwise(nn.Module):
    """A network that treats each position by itself: what it gets, mixed linearly, bent and mixed again."""

    def __init__(self, channels, planes):
        super().__init__()
        self.first = nn.Conv3d(channels + planes + 3, 16, 1)
        self.last = nn.Conv3d(16, channels, 1)
        self.calls = 0

    def forward(self, x, t, condition):
        self.calls += 1
        given = torch.cat([x, condition.planes, _positions(x, condition.place)], dim=1)
        return self.last(torch.tanh(self.first(given)) * (1 + t.view(-1, 1, 1, 1, 1)))

    def level_sides(self, side):
        return [side]


def make(patch, codec="haar", task=None):
    options = model_options(codec=codec) | {"data": {"patch": patch}}
    model = DiffusionModel(options, 1, 3, "fp32", None if task is None else resolve_task(task, ["T1"], 3))
    torch.manual_seed(0)
    model.network = Pointwise(model.codec.channels, model.network.parts[1])
    return model


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_by_windows_equal_those_of_whole_volumes_if_the_network_is_pointwise(name):
    settings = [SEEDS, Sampling(name, 3), Guidance(2.0, (0.2, 1.0), rescale=0.7)]
    whole, windows = (make(patch).sample(LABEL, *settings) for patch in (None, PATCH))
    torch.testing.assert_close(windows, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [None, {"mask": True, "degradation": "noise"}, {"target": "label", "mask": False}])
@pytest.mark.parametrize("codec", ["identity", "haar"])
def test_tasks_codecs_and_inpainting_work_by_windows(task, codec):
    whole, windows = make(None, codec, task), make(PATCH, codec, task)
    images = torch.rand(2, whole.task.num_images, *GRID) if whole.task.num_images else None
    region = torch.zeros(2, 1, *GRID, dtype=torch.bool)
    region[:, :, 2:5, 2:5, 2:5] = True
    known = torch.rand(2, whole.task.num_targets, *GRID) * 2 - 1
    for inpainting in (None, Inpainting(known, region, 2)):
        results = [
            model.sample(LABEL, SEEDS, Sampling("ddpm", 3), Guidance(1.5), Context(images), inpainting=inpainting)
            for model in (whole, windows)
        ]
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    number = windows.network.calls
    windows.sample(LABEL, SEEDS, Sampling("ddpm", 1), Guidance(1.5), Context(images))
    assert windows.network.calls - number == 6  # 3 x 1 x 2 windows
    # Only the two windows that contain something to inpaint are denoised.
    number = windows.network.calls
    windows.sample(
        LABEL, SEEDS, Sampling("ddpm", 1), Guidance(1.5), Context(images), inpainting=Inpainting(known, region)
    )
    assert windows.network.calls - number == 4


def test_one_window_of_a_real_network_is_the_whole_volume_with_coordinates():
    torch.manual_seed(0)
    whole = DiffusionModel(model_options(coordinates=True), 1, 3, "fp32")
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.1)
    windows = DiffusionModel(model_options() | {"data": {"patch": list(GRID)}}, 1, 3, "fp32")
    windows.load_state_dict(whole.state_dict())
    one, other = (model.sample(LABEL, SEEDS, Sampling("heun", 2), Guidance(2.0)) for model in (whole, windows))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_latents_of_an_autoencoder_are_decoded_by_windows():
    options = model_options(codec="kl") | {"data": {"patch": [8, 8, 8]}}
    options["codec"] |= {"channels": [4, 4], "latent_channels": 2}
    torch.manual_seed(0)
    model = DiffusionModel(options, 1, 3, "fp32")
    made = model.sample(LABEL, SEEDS, Sampling("ddim", 2), Guidance(2.0))
    assert made.shape == (2, 1, *GRID) and torch.isfinite(made).all()


def test_an_overlap_without_patches_and_a_volume_smaller_than_the_patch_are_refused():
    with pytest.raises(ValueError, match="overlap has no effect"):
        make(None).sample(LABEL, SEEDS, Sampling(overlap=0.5))
    with pytest.raises(ValueError, match="do not fit"):
        make([32, 8, 8]).sample(LABEL, SEEDS, Sampling())
