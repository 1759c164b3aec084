"""Tasks: what a model generates and what it is conditioned on, set by configuration alone.

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

EVERY = "all"


@dataclass(frozen=True)
class Task:
    """`TaskOptions` with modalities as indices into a cohort's modalities, see `resolve_task`.

    Attributes:
        target: what the model generates, "image" or "label".
        generated: modalities that the model generates; empty if the target is the label.
        given: modalities that are a condition, unchanged.
        mask: whether the label map is a condition.
        degradation: if not "none", degraded versions of the generated modalities are a condition too; see `degrade`.
        noise_std: for "noise": standard deviation of the noise, in the model's intensity range [-1, 1].
        factor: for "low_resolution": this many voxels per axis are averaged into one.
        num_classes: number of classes of the label map, with background.
    """

    target: str
    generated: tuple[int, ...]
    given: tuple[int, ...]
    mask: bool
    degradation: str
    noise_std: float
    factor: int
    num_classes: int

    @property
    def num_targets(self) -> int:
        """Number of volumes that the model generates: modalities, or foreground classes."""
        return len(self.generated) if self.target == "image" else self.num_classes - 1

    @property
    def num_images(self) -> int:
        """Number of images in the condition."""
        return len(self.given) + (len(self.generated) if self.degradation != "none" else 0)

    @property
    def num_masks(self) -> int:
        """Number of foreground classes in the condition."""
        return self.num_classes - 1 if self.mask else 0

    def target_of(self, image: Tensor, label: Tensor) -> Tensor:
        """The volumes that the model learns to generate: (B, num_targets, X, Y, Z) in [-1, 1].

        Args:
            image: (B, M, X, Y, Z) in [-1, 1], all modalities of the cohort.
            label: (B, X, Y, Z) class indices or IGNORE. As a target each foreground class is a plane of -1 and 1
                (after the analog bits of Chen et al. 2023), 0 at ignored voxels.
        """
        return image[:, list(self.generated)] if self.target == "image" else signed_planes(label, self.num_classes)

    def images_of(self, image: Tensor, seeds: Tensor | Sequence[int], degraded: bool = True) -> Tensor:
        """The images in the condition: (B, num_images, X, Y, Z).

        Args:
            image: (B, M, X, Y, Z) in [-1, 1], all modalities of the cohort.
            seeds: one per sample, for the noise of a degradation.
            degraded: True degrades the generated modalities first; False uses them as they are (already poor scans).
        """
        images = image[:, list(self.given)]
        if self.degradation == "none":
            return images
        poor = image[:, list(self.generated)]
        return torch.cat([images, self.degrade(poor, seeds) if degraded else poor], dim=1)

    def degrade(self, image: Tensor, seeds: Tensor | Sequence[int]) -> Tensor:
        """Degrade an image (B, C, X, Y, Z): add Gaussian noise, or average to coarse voxels and interpolate back."""
        if self.degradation == "noise":
            draws = generators([named_seed(int(seed), "degradation") for seed in seeds])
            return image + self.noise_std * standard_normal(draws, image.shape[1:], image.device)
        coarse = [-(-side // self.factor) for side in image.shape[2:]]
        return interpolate(interpolate(image, coarse, mode="area"), image.shape[2:], mode="trilinear")

    def label_of(self, target: Tensor) -> Tensor:
        """Class indices (B, X, Y, Z) of a generated label map (B, num_targets, X, Y, Z); inverts `target_of`."""
        background = torch.zeros_like(target[:, :1])
        return torch.cat([background, target], dim=1).argmax(1)

    def known_voxels(self, label: Tensor) -> Tensor | None:
        """The voxels where the target is known: (B, X, Y, Z) bool; None: all of them."""
        return label != IGNORE if self.target == "label" else None


def _check_modalities(chosen: TaskOptions, modalities: Sequence[str]) -> None:
    """Refuse modalities that the cohort does not have."""
    named = (("modalities", chosen.modalities), ("given", [name for name in chosen.given if name != EVERY]))
    for key, names in named:
        if unknown := [name for name in names if name not in modalities]:
            raise UserError(
                f"task.{key}: {', '.join(unknown)} is not a modality of the cohort",
                f"choose from {', '.join(modalities)}",
            )


def resolve_task(options: Mapping[str, Any], modalities: Sequence[str], num_classes: int) -> Task:
    """Turn the plain `task` options (empty: mask to image) into the task for a cohort.

    Raises:
        UserError: names the key, what is wrong, and the remedy.
    """
    chosen = TaskOptions(**{f.name: options[f.name] for f in fields(TaskOptions) if f.name in options})
    _check_modalities(chosen, modalities)
    if chosen.target == "label":
        if chosen.mask:
            raise UserError(
                "task.target=label: the model generates the mask, so it cannot be a condition", "set task.mask=false"
            )
        if chosen.modalities or chosen.degradation != "none":
            raise UserError("task.target=label: task.modalities and task.degradation are for task.target=image")
        generated = []
    else:
        generated = [name for name in modalities if name in chosen.modalities] or list(modalities)
    given = [name for name in modalities if name not in generated] if EVERY in chosen.given else chosen.given
    if both := [name for name in given if name in generated]:
        raise UserError(
            f"task.given: {', '.join(both)} is also generated", "name it in one of task.modalities, task.given"
        )
    if chosen.given and not given:
        raise UserError(
            f"task.given=[{EVERY}]: every modality is generated, so none is left as a condition",
            f"set task.modalities to the one that is missing, of {', '.join(modalities)}",
        )
    number = {name: i for i, name in enumerate(modalities)}
    return Task(
        target=chosen.target,
        generated=tuple(number[name] for name in generated),
        given=tuple(number[name] for name in given),
        mask=chosen.mask,
        degradation=chosen.degradation,
        noise_std=chosen.noise_std,
        factor=chosen.factor,
        num_classes=num_classes,
    )
