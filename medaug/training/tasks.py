"""What a model draws, and what it is told: one machine for every task, by configuration alone.

image            mask -> image
unconditional    nothing -> image, the base of a ControlNet
mask_generator   nothing -> label map
translation      some modalities -> another
denoise          noisy scan -> scan
super_resolution coarse scan -> scan
segmentation     image -> label map
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medaug.cohort.schema import IGNORE
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.errors import UserError
from medaug.networks.condition import signed_planes
from medaug.options import TaskOptions

TARGETS = ("image", "label")
DEGRADATIONS = ("none", "noise", "low_resolution")
EVERY = "all"


@dataclass(frozen=True)
class Task:
    """`TaskOptions` with modalities as their numbers in a cohort, see `resolve_task`.

    Attributes:
        target: what is drawn, "image" or "label".
        drawn: modalities that are drawn; none where the target is the label.
        given: modalities that are a condition as they are.
        mask: whether the label map is a condition.
        degradation: the drawn modalities are also given, degraded so; see `degrade`.
        noise_std: noise: in units of the model's intensities.
        factor: low_resolution: voxels per axis that become one.
        num_classes: of the label map, with background.
    """

    target: str
    drawn: tuple[int, ...]
    given: tuple[int, ...]
    mask: bool
    degradation: str
    noise_std: float
    factor: int
    num_classes: int

    @property
    def num_targets(self) -> int:
        """Volumes that are drawn: modalities, or foreground classes."""
        return len(self.drawn) if self.target == "image" else self.num_classes - 1

    @property
    def num_images(self) -> int:
        """Images that are given."""
        return len(self.given) + (len(self.drawn) if self.degradation != "none" else 0)

    @property
    def num_masks(self) -> int:
        """Foreground classes that are given."""
        return self.num_classes - 1 if self.mask else 0

    def target_of(self, image: Tensor, label: Tensor) -> Tensor:
        """What is drawn: (B, num_targets, X, Y, Z) in [-1, 1].

        Args:
            image: (B, M, X, Y, Z) in [-1, 1], all modalities of the cohort.
            label: (B, X, Y, Z) class indices or IGNORE. As a target each foreground class is a plane of -1 and 1
                (after the analog bits of Chen et al. 2023), 0 where it is ignored.
        """
        return image[:, list(self.drawn)] if self.target == "image" else signed_planes(label, self.num_classes)

    def images_of(self, image: Tensor, seeds: Tensor | Sequence[int], degraded: bool = True) -> Tensor:
        """The images that are given: (B, num_images, X, Y, Z).

        Args:
            image: (B, M, X, Y, Z) in [-1, 1], all modalities of the cohort.
            seeds: one per sample, for the noise of a degradation.
            degraded: whether the drawn modalities are still to be degraded, or are of poor quality by themselves.
        """
        images = image[:, list(self.given)]
        if self.degradation == "none":
            return images
        poor = image[:, list(self.drawn)]
        return torch.cat([images, self.degrade(poor, seeds) if degraded else poor], dim=1)

    def degrade(self, image: Tensor, seeds: Tensor | Sequence[int]) -> Tensor:
        """Image (B, C, X, Y, Z) as a poorer scan: with Gaussian noise, or averaged to coarse voxels and back."""
        if self.degradation == "noise":
            draws = generators([named_seed(int(seed), "degradation") for seed in seeds])
            return image + self.noise_std * standard_normal(draws, image.shape[1:], image.device)
        coarse = [-(-side // self.factor) for side in image.shape[2:]]
        return interpolate(interpolate(image, coarse, mode="area"), image.shape[2:], mode="trilinear")

    def label_of(self, target: Tensor) -> Tensor:
        """Class indices (B, X, Y, Z) of a drawn label map (B, num_targets, X, Y, Z): the inverse of `target_of`."""
        background = torch.zeros_like(target[:, :1])
        return torch.cat([background, target], dim=1).argmax(1)

    def judged(self, label: Tensor) -> Tensor | None:
        """Where the target is known: (B, X, Y, Z) bool; None: everywhere."""
        return label != IGNORE if self.target == "label" else None


def resolve_task(options: Mapping[str, Any], modalities: Sequence[str], num_classes: int) -> Task:
    """The task that the plain `task` node of the options (empty: mask to image) means for a cohort.

    Raises:
        UserError: names the key, what is wrong, and the way out.
    """
    chosen = TaskOptions(**{f.name: options[f.name] for f in fields(TaskOptions) if f.name in options})
    if chosen.target not in TARGETS:
        raise UserError(f"task.target={chosen.target}: not one of {', '.join(TARGETS)}")
    if chosen.degradation not in DEGRADATIONS:
        raise UserError(f"task.degradation={chosen.degradation}: not one of {', '.join(DEGRADATIONS)}")
    if chosen.degradation == "noise" and chosen.noise_std <= 0:
        raise UserError(f"task.noise_std={chosen.noise_std:g}: must be above 0")
    if chosen.degradation == "low_resolution" and chosen.factor < 2:
        raise UserError(f"task.factor={chosen.factor}: at least 2 voxels per axis are needed")
    for key, degradation in (("noise_std", "noise"), ("factor", "low_resolution")):
        value = getattr(chosen, key)
        if chosen.degradation != degradation and value != getattr(TaskOptions(), key):
            raise UserError(
                f"task.{key}={value:g}: has no effect without task.degradation={degradation}", "leave it out"
            )
    named = (("modalities", chosen.modalities), ("given", [name for name in chosen.given if name != EVERY]))
    for key, names in named:
        if unknown := [name for name in names if name not in modalities]:
            raise UserError(f"task.{key}: {', '.join(unknown)} is no modality", f"choose of {', '.join(modalities)}")
        if len(set(names)) < len(names):
            raise UserError(f"task.{key}=[{','.join(names)}]: a modality stands there twice")
    if chosen.target == "label":
        if chosen.mask:
            raise UserError("task.target=label: the mask is what is drawn", "set task.mask=false")
        if chosen.modalities or chosen.degradation != "none":
            raise UserError("task.target=label: task.modalities and task.degradation are for task.target=image")
        drawn = []
    else:
        drawn = [name for name in modalities if name in chosen.modalities] or list(modalities)
    given = [name for name in modalities if name not in drawn] if EVERY in chosen.given else chosen.given
    if both := [name for name in given if name in drawn]:
        raise UserError(f"task.given: {', '.join(both)} is also drawn", "name it in one of task.modalities, task.given")
    if chosen.given and not given:
        raise UserError(
            f"task.given=[{EVERY}]: every modality is drawn, so none is left to give",
            f"set task.modalities to the one that is missing, of {', '.join(modalities)}",
        )
    number = {name: i for i, name in enumerate(modalities)}
    return Task(
        target=chosen.target,
        drawn=tuple(number[name] for name in drawn),
        given=tuple(number[name] for name in given),
        mask=chosen.mask,
        degradation=chosen.degradation,
        noise_std=chosen.noise_std,
        factor=chosen.factor,
        num_classes=num_classes,
    )
