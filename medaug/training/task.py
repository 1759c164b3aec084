"""The LightningModule: loss, optimiser, validation; and its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.data.batches import FixedBatches, MixedBatches, StepsFrom, TrainingBatches
from medaug.data.cases import ModelCase
from medaug.data.transforms import light_affine
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.training.checkpoint import Card
from medaug.training.model import Dropout

Picture = Callable[[int, dict[str, Tensor], Tensor], Path]
"""(step, batch, what was sampled for it (B, num_targets, X, Y, Z)), all on the CPU, to the PNG that shows them."""

PICTURED = 3


class DiffusionTask(LightningModule):
    """Trains a `DiffusionModel`.

    Args:
        card: what the model is made of; it is written into every checkpoint.
        budget: learning rate, its schedule, condition dropout, seed.
        picture: draws samples beside real images at every validation.
    """

    def __init__(self, card: Card, budget: TrainerOptions, picture: Picture | None = None) -> None:
        super().__init__()
        self.card = card
        self.budget = budget
        self.picture = picture
        self.dropout = Dropout(
            budget.condition_dropout, budget.class_dropout, budget.image_dropout, budget.attribute_dropout
        )
        # The weights' own stream: building the model draws from nothing else and disturbs nothing else.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(self.budget.seed, "weights"))
            self.model = card.build()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the batch."""
        loss = self.model.loss(batch, self.dropout).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.log("train/samples", float((self.global_step + 1) * self.budget.batch_size * self.trainer.world_size))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss of the averaged weights on held-out subjects, at the same times and noise every time; pictures."""
        self.log("val/loss", self.model.loss(batch).mean(), prog_bar=True, batch_size=len(batch["image"]))
        if batch_idx == 0 and self.picture is not None and self.trainer.is_global_zero:
            self._draw(batch, self.picture)

    def _draw(self, batch: dict[str, Tensor], picture: Picture) -> None:
        few = {key: value[:PICTURED] for key, value in batch.items()}
        images = self.model.task.images_of(few["image"], few["seed"])
        samples = self.model.sample(
            few["label"],
            [named_seed(int(seed), "picture") for seed in few["seed"]],
            guidance_scale=1.5 if self.model.task.mask else 1.0,
            sampler="dpmpp_2m",
            num_inference_steps=12,
            images=images if images.shape[1] else None,
            attributes=few["attributes"],
        )
        path = picture(self.global_step, {key: value.cpu() for key, value in few.items()}, samples.cpu())
        if isinstance(self.logger, TensorBoardLogger):
            from matplotlib.image import imread

            pixels = imread(path)[..., :3]
            self.logger.experiment.add_image("samples", pixels, self.global_step, dataformats="HWC")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, linear warm-up, cosine decay to a tenth."""
        trained = [p for p in self.parameters() if p.requires_grad]  # a ControlNet's base is not
        optimizer = torch.optim.AdamW(trained, lr=self.budget.learning_rate, weight_decay=self.budget.weight_decay)
        warmup, last = self.budget.warmup_steps, self.budget.max_steps

        def factor(step: int) -> float:
            progress = min(step / max(last, 1), 1.0)
            return min(1.0, (step + 1) / max(warmup, 1)) * (0.55 + 0.45 * math.cos(math.pi * progress))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, so that the checkpoint needs nothing beside it."""
        checkpoint["medaug"] = self.card.to_dict()


class DiffusionData(LightningDataModule):
    """Training batches from the step that the run stands at, and fixed validation batches."""

    def __init__(
        self,
        train: Sequence[ModelCase],
        val: Sequence[ModelCase],
        budget: TrainerOptions,
        attributes: AttributeEncoder = NO_ATTRIBUTES,
    ) -> None:
        super().__init__()
        self.train_cases = train
        self.val_cases = val
        self.budget = budget
        self.attributes = attributes

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """One batch per step."""
        trainer = self.trainer
        assert trainer is not None
        ranks = trainer.global_rank, trainer.world_size
        batches = training_batches(self.train_cases, self.budget, *ranks, self.attributes)
        steps = StepsFrom(trainer.global_step, self.budget.max_steps)
        workers = self.budget.num_workers
        return DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, persistent_workers=workers > 0)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every validation case once."""
        batches = FixedBatches(self.val_cases, self.budget.batch_size, self.budget.seed, self.attributes)
        return DataLoader(batches, batch_size=None)


def training_batches(
    cases: Sequence[ModelCase],
    budget: TrainerOptions,
    rank: int = 0,
    world_size: int = 1,
    attributes: AttributeEncoder = NO_ATTRIBUTES,
) -> TrainingBatches | MixedBatches:
    """The batches that a rank trains on, by step: cases as they come, or with a share of each batch labelled.

    Raises:
        UserError: `labelled_share` cannot be met.
    """
    augment = light_affine if budget.augment else None
    if budget.labelled_share is None:
        return TrainingBatches(cases, budget.batch_size, budget.seed, augment, rank, world_size, attributes)
    labelled = [case for case in cases if case.label is not None]
    unlabelled = [case for case in cases if case.label is None]
    number = round(budget.batch_size * budget.labelled_share)
    if not 0 < number < budget.batch_size:
        raise UserError(
            f"trainer.labelled_share={budget.labelled_share:g}: of a batch of {budget.batch_size} that is {number} "
            "with a label; both kinds are needed, else leave it out"
        )
    if not labelled or not unlabelled:
        raise UserError(
            f"trainer.labelled_share={budget.labelled_share:g}: there are {len(labelled)} training scans with a label "
            f"and {len(unlabelled)} without; both kinds are needed, else leave it out"
        )
    parts = ((labelled, number, "labelled"), (unlabelled, budget.batch_size - number, "unlabelled"))
    return MixedBatches(
        [
            TrainingBatches(some, count, named_seed(budget.seed, name), augment, rank, world_size, attributes)
            for some, count, name in parts
        ]
    )
