"""Mask source "generated": label maps sampled from a second model, trained with task=mask_generator."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medaug.cohort.seen import Seen
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource, Reason, TrainingMasks, touches_border
from medaug.training.checkpoint import load_model
from medaug.training.model import DiffusionModel
from medaug.training.sampling import check_sampling


@dataclass(frozen=True)
class GeneratedMasks(Masks):
    """Masks from a trained mask generator. The host provides only its grid and intensities.

    Attributes:
        model: generates label maps without any condition.
        sampling: sampler, steps and spacing.
        checkpoint: SHA-256 of the model's checkpoint.
        seen: what the model's training saw.
        volumes: smallest and largest number of voxels in a training mask, for each foreground class; see `fitted`.
        at_border: whether any training mask touches the border of the grid.
    """

    model: DiffusionModel
    sampling: Sampling
    checkpoint: str
    seen: Seen
    volumes: tuple[tuple[int, int], ...] = ()
    at_border: bool = True
    remedy: str = field(default="train the mask generator longer, or use masks=deformed", init=False)

    @property
    def parameters(self) -> dict[str, Any]:  # type: ignore[override]
        """The checkpoint of the mask generator."""
        return {"checkpoint": self.checkpoint}

    def fitted(self, training: TrainingMasks) -> GeneratedMasks:
        """Return this generator with `volumes` and `at_border` measured on the training masks."""
        number = self.model.task.num_classes
        counts = np.stack([np.bincount(label.ravel(), minlength=number)[1:number] for label in training.labels])
        volumes = tuple((int(least), int(most)) for least, most in zip(counts.min(0), counts.max(0), strict=True))
        return replace(self, volumes=volumes, at_border=any(map(touches_border, training.labels)))

    def make(self, label: Label, seed: int) -> Label:
        """Sample a mask with the shape of the label; the label's values are not used."""
        planes = self.model.sample(
            torch.zeros(1, *label.shape, dtype=torch.long, device=self.model.codec.mean.device),
            [seed],
            self.sampling,
        )
        return self.model.task.label_of(planes)[0].cpu().numpy().astype(np.uint8)

    def rejection(self, mask: Label, label: Label) -> Reason | None:
        """Why a mask is not plausible; None if it is.

        A mask is rejected if it lacks a class that every training mask has, if a class has fewer or more voxels than in
        all training masks, or if foreground touches the border of the grid although it never does in training masks.
        """
        for value, (least, most) in enumerate(self.volumes, start=1):
            number = int((mask == value).sum())
            if not number and least:
                return Reason(f"class {value} is missing", "missing")
            if not least <= number <= most:
                return Reason(f"class {value} has {number} voxels, and {least} to {most} in training masks", "volume")
        if touches_border(mask) and not self.at_border:
            return Reason("the mask was cut by the border", "border")
        return None


def _load(options: MasksOptions, image_model: ImageModel | None) -> GeneratedMasks:
    if image_model is None:
        raise UserError(
            "masks=generated: while a model trains, its samples are scored on deformed or real masks",
            "leave it out, or set trainer.score_every=0",
        )
    if options.checkpoint is None:
        raise UserError("masks=generated: needs masks.checkpoint=FILE, from a training with task=mask_generator")
    card, cohort, sampler = image_model.card, image_model.cohort, image_model.sampler
    path = Path(options.checkpoint)
    own, model = load_model(path, image_model.device)
    task = model.task
    if task.target != "label" or task.num_images:
        raise UserError("not a mask generator", "give the checkpoint of a training with task=mask_generator", path=path)
    if own.schema.labels != card.schema.labels:
        raise UserError(f"its labels are not those of {card.experiment}", "train it on the same cohort", path=path)
    grids = [(c.preprocessing.shape, c.preprocessing.spacing) for c in (own, card)]
    if grids[0] != grids[1]:
        (shape, spacing), (wanted, at) = grids
        raise UserError(
            f"draws on the grid {shape} at {spacing} mm, and the images are on {wanted} at {at} mm",
            "train it with the same data options",
            path=path,
        )
    if leaked := sorted({*own.seen.test_subjects(cohort), *own.seen.trained_outside(cohort.subjects("train"))}):
        raise UserError(
            f"leak: it saw {', '.join(leaked[:3])}, not a training subject here",
            "train it on the same split",
            path=path,
        )
    return GeneratedMasks(model, check_sampling(model.process, sampler), file_sha256(path), own.seen)


GENERATED = MaskSource(_load)
