"""The LightningModule: loss, optimiser, validation; and its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.data.batches import (
    FixedBatches,
    MixedBatches,
    SoftBatches,
    StepsFrom,
    TrainingBatches,
    make_loader,
)
from medaug.data.cases import ModelCase
from medaug.data.patches import Patches
from medaug.data.transforms import light_affine
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.noise import named_seed
from medaug.diffusion.samplers import Sampling, safe_spacing
from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.training.callbacks import stepped
from medaug.training.checkpoint import Card
from medaug.training.hardware import compiles, shard
from medaug.training.model import Context, Dropout


class Picture(Protocol):
    """Draws samples beside the batch that they were sampled for."""

    def __call__(self, step: int, batch: dict[str, Tensor], sample: Tensor, made: str = "synthetic") -> Path:
        """Write a PNG and return its path.

        Args:
            step: training step.
            batch: on the CPU.
            sample: (B, num_targets, X, Y, Z), on the CPU.
            made: "synthetic", or "reconstruction" if a codec encoded and decoded the targets.
        """


PICTURED = 3
PICTURE_STEPS = 12
NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which the validation loss is computed, with the same noise each time: the centres of fifths of [0, 1]."""


def make_optimizer(module: nn.Module, budget: TrainerOptions) -> torch.optim.AdamW:
    """AdamW for all trainable weights of a module; a ControlNet's base is frozen."""
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=budget.learning_rate,
        weight_decay=budget.weight_decay,
        fused=budget.precision != "fp16",  # fused AdamW unscales fp16 losses itself, and Lightning then cannot clip
    )


class DiffusionModule(LightningModule):
    """Trains a `DiffusionModel`.

    Args:
        card: card of the model; it is written into every checkpoint.
        budget: learning rate and its schedule, condition dropout, seed.
        picture: draws samples beside real images at every validation.
    """

    def __init__(self, card: Card, budget: TrainerOptions, picture: Picture | None = None) -> None:
        super().__init__()
        self.card = card
        self.budget = budget
        self.picture = picture
        self.dropout = Dropout.of(budget)
        # Build the model with its own seed, and leave the global random state as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(self.budget.seed, "weights"))
            self.model = card.build()

        self._losses: list[Tensor] = []

    def configure_model(self) -> None:
        """Split the network's weights over the devices (fsdp) and compile it, if the options say so."""
        if self.device_mesh is not None and not isinstance(self.model.network, FSDPModule):
            shard(self.model.network, self.device_mesh)
        if compiles(self.budget):
            self.model.network.compile()  # in place: its weights keep their names

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the batch; the logged loss is the mean over all batches of the step, on all devices."""
        loss = self.model.loss(batch, self.dropout).mean()
        self._losses.append(loss.detach())
        if stepped(self.trainer, batch_idx):
            mean = torch.stack(self._losses).mean()
            self._losses.clear()
            samples = self.budget.batch_size * self.budget.accumulate * self.trainer.world_size
            self.log("train/loss", mean, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
            self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            self.log("train/samples", float((self.global_step + 1) * samples))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss of the averaged weights on validation subjects, with the same times and noise every time; pictures.

        `val/loss` uses a fixed time per case; `val/loss_t0.1` and so on use that time for all cases.
        """
        size = len(batch["image"])
        self.log("val/loss", self.model.loss(batch).mean(), prog_bar=True, batch_size=size)
        for level in NOISE_LEVELS:
            t = torch.full((size,), level, device=batch["image"].device)
            self.log(f"val/loss_t{level:g}", self.model.loss(batch, t=t).mean(), batch_size=size)
        if batch_idx == 0 and self.picture is not None:
            self._draw(batch, self.picture)

    def _draw(self, batch: dict[str, Tensor], picture: Picture) -> None:
        few = {key: value[:PICTURED] for key, value in batch.items()}
        samples = self.model.sample(
            few["label"],
            [named_seed(int(seed), "picture") for seed in few["seed"]],
            Sampling("dpmpp_2m", PICTURE_STEPS, safe_spacing(self.model.process)),
            Guidance(1.5 if self.model.task.mask else 1.0),
            Context(
                images=self.model.task.images_of(few["image"], few["seed"]),
                attributes=few["attributes"],
                labelled=few["labelled"],
                place=few.get("place"),
                field_of_view=few["field_of_view"],
            ),
        )
        if not self.trainer.is_global_zero:  # all ranks must sample, because the weights may be split
            return
        path = picture(self.global_step, {key: value.cpu() for key, value in few.items()}, samples.cpu())
        if isinstance(self.logger, TensorBoardLogger):
            from matplotlib.image import imread

            pixels = imread(path)[..., :3]
            self.logger.experiment.add_image("samples", pixels, self.global_step, dataformats="HWC")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear warm-up, then a cosine decay to a tenth or a constant learning rate."""
        optimizer = make_optimizer(self, self.budget)
        warmup, last, cosine = self.budget.warmup_steps, self.budget.max_steps, self.budget.schedule == "cosine"

        def factor(step: int) -> float:
            progress = min(step / max(last, 1), 1.0)
            decay = 0.55 + 0.45 * math.cos(math.pi * progress) if cosine else 1.0
            return min(1.0, (step + 1) / max(warmup, 1)) * decay

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, so that the checkpoint is complete by itself."""
        checkpoint["medaug"] = self.card.to_dict()


class DiffusionData(LightningDataModule):
    """Training batches from the current step on, and fixed validation batches."""

    def __init__(
        self,
        train: Sequence[ModelCase],
        val: Sequence[ModelCase],
        budget: TrainerOptions,
        attributes: AttributeEncoder = NO_ATTRIBUTES,
        sliced: bool = False,
        patches: Patches | None = None,
        field_of_view: bool = False,
    ) -> None:
        super().__init__()
        self.train_cases = train
        self.val_cases = val
        self.budget = budget
        self.attributes = attributes
        self.sliced = sliced
        self.patches = patches
        self.field_of_view = field_of_view

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """`trainer.accumulate` batches per step; the samples of a batch depend only on its number."""
        trainer = self.trainer
        assert trainer is not None
        ranks, accumulate = (trainer.global_rank, trainer.world_size), self.budget.accumulate
        conditions = self.attributes, self.sliced, self.patches, self.field_of_view
        batches = training_batches(self.train_cases, self.budget, ranks[0], ranks[1], *conditions)
        steps = StepsFrom(trainer.global_step * accumulate, self.budget.max_steps * accumulate)
        return make_loader(batches, steps, self.budget.num_workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every validation case once, or one patch of each."""
        budget = self.budget
        batches = FixedBatches(self.val_cases, budget.batch_size, budget.seed, self.attributes, self.patches)
        return DataLoader(batches, batch_size=None)


def training_batches(
    cases: Sequence[ModelCase],
    budget: TrainerOptions,
    rank: int = 0,
    world_size: int = 1,
    attributes: AttributeEncoder = NO_ATTRIBUTES,
    sliced: bool = False,
    patches: Patches | None = None,
    field_of_view: bool = False,
) -> TrainingBatches | MixedBatches:
    """The batches that a rank trains on, by step; with `labelled_share`, that share of each batch is labelled.

    Raises:
        UserError: `labelled_share` cannot be satisfied.
    """
    augment = light_affine if budget.augment else None
    soft = [case.soft for case in cases if case.soft is not None]
    make: Callable[..., TrainingBatches] = partial(SoftBatches, num_classes=len(soft[0])) if soft else TrainingBatches
    if budget.labelled_share is None:
        return make(cases, budget.batch_size, budget.seed, augment, rank, world_size, attributes, sliced).of(
            patches, field_of_view
        )
    labelled = [case for case in cases if case.label is not None]
    unlabelled = [case for case in cases if case.label is None]
    number = round(budget.batch_size * budget.labelled_share)
    if not 0 < number < budget.batch_size:
        raise UserError(
            f"trainer.labelled_share={budget.labelled_share:g}: of a batch of {budget.batch_size} that is {number} "
            "with a label",
            "both kinds are needed, else leave it out",
        )
    if not labelled or not unlabelled:
        raise UserError(
            f"trainer.labelled_share={budget.labelled_share:g}: there are {len(labelled)} training scans with a label "
            f"and {len(unlabelled)} without",
            "both kinds are needed, else leave it out",
        )
    parts = ((labelled, number, "labelled"), (unlabelled, budget.batch_size - number, "unlabelled"))
    return MixedBatches(
        [
            make(some, count, named_seed(budget.seed, name), augment, rank, world_size, attributes, sliced).of(
                patches, field_of_view
            )
            for some, count, name in parts
        ]
    )
