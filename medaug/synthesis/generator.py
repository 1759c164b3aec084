"""Masks that nobody drew: a second model, from noise to label map (task=mask_generator), and what it may not draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medaug.cohort.manifest import Manifest
from medaug.cohort.seen import Seen
from medaug.diffusion.samplers import check
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.options import MasksOptions, SamplerOptions
from medaug.synthesis.masks import touches_border
from medaug.training.checkpoint import Card, load_model
from medaug.training.model import DiffusionModel


@dataclass(frozen=True)
class MaskGenerator:
    """A trained mask generator and the masks of the training split that its own are held against.

    Attributes:
        model: draws label maps from nothing.
        checkpoint: its SHA-256.
        seen: by its training.
        sampler: options.
        volumes: per foreground class, the least and the most voxels of it in a training mask; see `held_against`.
        at_border: whether a training mask touches the border of the grid.
    """

    model: DiffusionModel
    checkpoint: str
    seen: Seen
    sampler: SamplerOptions
    volumes: tuple[tuple[int, int], ...] = ()
    at_border: bool = True

    def held_against(self, labels: Sequence[NDArray[np.uint8]]) -> MaskGenerator:
        """The same, with what it may draw measured on training masks (X, Y, Z)."""
        number = self.model.task.num_classes
        counts = np.stack([np.bincount(label.ravel(), minlength=number)[1:number] for label in labels])
        volumes = tuple((int(least), int(most)) for least, most in zip(counts.min(0), counts.max(0), strict=True))
        return replace(self, volumes=volumes, at_border=any(touches_border(label) for label in labels))

    def draw(self, shape: Sequence[int], seed: int) -> NDArray[np.uint8]:
        """A mask (X, Y, Z) of class indices: a function of the seed, drawn by itself."""
        planes = self.model.sample(
            torch.zeros(1, *shape, dtype=torch.long, device=self.model.codec.mean.device),
            [seed],
            guidance_scale=1.0,
            sampler=self.sampler.name,
            num_inference_steps=self.sampler.num_inference_steps,
            eta=self.sampler.eta,
            spacing=self.sampler.spacing,
        )
        return self.model.task.label_of(planes)[0].cpu().numpy().astype(np.uint8)

    def rejection(self, mask: NDArray[np.uint8]) -> str | None:
        """Why a mask is not plausible; None where it is.

        A class has fewer or more voxels than in any training mask (none, where all have it), or foreground touches the
        border of the grid though it does in no training mask.
        """
        for value, (least, most) in enumerate(self.volumes, start=1):
            number = int((mask == value).sum())
            if not number and least:
                return f"class {value} is missing"
            if not least <= number <= most:
                return f"class {value} has {number} voxels, and {least} to {most} in training masks"
        if touches_border(mask) and not self.at_border:
            return "the mask was cut by the border"
        return None


def load_mask_generator(
    masks: MasksOptions,
    sampler: SamplerOptions,
    card: Card,
    cohort: Manifest,
    device: torch.device,
) -> MaskGenerator | None:
    """The mask generator that the options name; None where masks come from training cases.

    Args:
        masks, sampler: options.
        card: of the model that draws images for the masks.
        cohort: that model was trained on, with its splits.
        device: to sample on.

    Raises:
        UserError: names the key or the file, what is wrong, and the way out.
    """
    if masks.source != "generated":
        if masks.checkpoint is not None:
            raise UserError(f"masks.checkpoint: masks={masks.source} does not read it; choose masks=generated")
        return None
    if masks.checkpoint is None:
        raise UserError("masks=generated: needs masks.checkpoint=FILE, of a training with task=mask_generator")
    path = Path(masks.checkpoint)
    own, model = load_model(path, device)
    task = model.task
    if task.target != "label" or task.num_images:
        raise UserError(f"{path}: not a mask generator; give the checkpoint of a training with task=mask_generator")
    if own.schema.labels != card.schema.labels:
        raise UserError(f"{path}: its labels are not those of {card.experiment}; train it on the same cohort")
    grids = [(c.preprocessing.shape, c.preprocessing.spacing) for c in (own, card)]
    if grids[0] != grids[1]:
        (shape, spacing), (wanted, at) = grids
        raise UserError(
            f"{path}: draws on the grid {shape} at {spacing} mm, and the images are on {wanted} at {at} mm; "
            "train it with the same data options"
        )
    if leaked := sorted({*own.seen.test_subjects(cohort), *own.seen.trained_outside(cohort.subjects("train"))}):
        raise UserError(
            f"{path}: leak: it saw {', '.join(leaked[:3])}, no training subject here; train it on the same split"
        )
    try:
        check(model.process, sampler.name, sampler.spacing, sampler.eta, sampler.num_inference_steps)
    except ValueError as error:
        raise UserError(f"sampler: {error}") from error
    return MaskGenerator(model=model, checkpoint=file_sha256(path), seen=own.seen, sampler=sampler)
