"""The generator's own network as a segmenter, untrained or with the generator's weights.

A network that has learned to denoise scans knows their anatomy without any label, so it needs fewer labels to learn to
segment them (Baranchuk et al. 2022, "Label-efficient semantic segmentation with diffusion models"). There the features
of a frozen network are classified; here the whole network is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medaug.errors import UserError
from medaug.networks.codecs import crop, depth_to_space
from medaug.options import SegmenterOptions
from medaug.segmentation.protocol import Problem, TrainingSet
from medaug.segmentation.unet import UNetSegmenter, train_segmenter
from medaug.training.checkpoint import load_model, read_checkpoint
from medaug.training.model import DiffusionModel

TIME = 0.1
"""The time that the network is told, in 0..1, where it knows little noise. The images have none."""


class DenoiserNet(nn.Module):
    """The network of a diffusion model, with logits of every voxel of a block as its output at a position.

    Args:
        model: a diffusion model that generates images.
        num_classes: number of classes, with background.
    """

    def __init__(self, model: DiffusionModel, num_classes: int) -> None:
        super().__init__()
        self.model = model
        model.codec.requires_grad_(False)
        network: Any = model.network.requires_grad_(True)  # the base of a ControlNet is frozen
        block = math.prod(model.codec.stride)
        head = network.unet.out[-1].conv
        network.unet.out[-1] = type(head)(head.in_channels, num_classes * block, 3, padding=1)
        self.bottleneck = network.unet.middle_block
        self.strides = (2,) * (len(network.shape.channels) - 1 + int(math.log2(max(model.codec.stride))))

    def forward(self, image: Tensor) -> Tensor:
        """(B, M, X, Y, Z) to logits (B, num_classes, X, Y, Z)."""
        model, number, sides = self.model, len(image), image.shape[2:]
        code, t = model.codec.encode(image), torch.full((number,), TIME, device=image.device)
        unknown = torch.zeros(number, model.task.num_classes - 1, device=image.device)
        condition = model.condition(torch.zeros(number, *sides, device=image.device), unknown)
        schedule = model.process.schedule
        scaled = schedule.input_scale(t).view(-1, 1, 1, 1, 1) * code
        logits = model.network(scaled, schedule.network_time(t), condition)
        return crop(depth_to_space(logits, model.codec.stride), sides)


def build_denoiser(
    generator: Path, pretrained: bool, num_modalities: int, num_classes: int, channels: Sequence[int]
) -> nn.Module:
    """The network of a generator, for logits; `channels` is not used, because the generator has its own.

    Args:
        generator: checkpoint.
        pretrained: whether to begin with the generator's averaged weights; otherwise they are random.
        num_modalities: number of channels of an image.
        num_classes: number of classes, with background.
        channels: not used.

    Raises:
        UserError: the checkpoint is damaged, or its model does not generate images of all modalities.
    """
    model = load_model(generator, torch.device("cpu"))[1] if pretrained else read_checkpoint(generator)[0].build()
    task = model.task
    if task.target != "image" or task.num_targets != num_modalities or task.num_images or model.sliced:
        raise UserError(
            "its network cannot be a segmenter: it must generate whole images of all modalities from masks alone",
            "leave out the arms that use it",
            path=generator,
        )
    return DenoiserNet(model, num_classes)


class DenoiserSegmenter(UNetSegmenter):
    """A `UNetSegmenter` whose network is that of the generator."""

    def __init__(self, problem: Problem, options: SegmenterOptions, generator: Path) -> None:
        super().__init__(problem, options, partial(build_denoiser, generator, False))
        self.generator = generator

    def fit(self, training_set: TrainingSet, steps: int, seed: int, name: str) -> None:
        """See `train_segmenter`; with `TrainingSet.pretrained` the network begins with the generator's weights."""
        build = partial(build_denoiser, self.generator, training_set.pretrained)
        self.net = train_segmenter(
            training_set, self.problem.schema.num_classes, self.options, steps, seed, name, build
        )


@dataclass(frozen=True)
class DenoiserBackend:
    """Makes segmenters with the network of the cohort's generator."""

    def make(self, problem: Problem, options: SegmenterOptions) -> DenoiserSegmenter:
        """An untrained segmenter for a problem.

        Raises:
            UserError: there is no generator.
        """
        if problem.generator is None:
            raise UserError(
                "segmenter backend denoiser: it uses the network of the experiment's generator, and there is none",
                "run medaug.train first, or choose another backend",
            )
        return DenoiserSegmenter(problem, options, problem.generator)


DENOISER = DenoiserBackend()
