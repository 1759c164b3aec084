"""A training, from its options to its result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import OutOfMemoryError

from medaug.cohort.manifest import Manifest
from medaug.errors import UserError
from medaug.options import Options
from medaug.processes import process_rank
from medaug.training.data import TrainingData, load_training_data
from medaug.training.fit import TrainingResult, fit
from medaug.training.module import Picture
from medaug.training.plan import make_plan
from medaug.training.scoring import Score
from medaug.training.tasks import Task

log = logging.getLogger(__name__)

LESS_MEMORY = "lower trainer.batch_size (accumulate makes up for it) or set network.gradient_checkpointing=true"


@dataclass(frozen=True)
class Experiment:
    """A training in a run folder.

    Attributes:
        options: options of the run.
        data: scans and card.
        manifest: the cohort with its splits.
        task: task of the model.
        folder: folder of the run.
        base: checkpoint that the training is initialised from; None: random weights.
    """

    options: Options
    data: TrainingData
    manifest: Manifest
    task: Task
    folder: Path
    base: Path | None

    @classmethod
    def load(cls, options: Options, identity: dict[str, Any], folder: Path, base: Path | None) -> Experiment:
        """Load the data; arguments and errors are those of `load_training_data`."""
        data, manifest, task = load_training_data(options, identity, folder, base)
        return cls(options, data, manifest, task, folder, base)

    def show_plan(self, scored: bool) -> None:
        """Log the plan of the training (time and memory), once per run.

        Raises:
            UserError: with dry_run, if a step does not fit into the device's memory.
        """
        dry_run = self.options.train.dry_run
        if process_rank() != 0 or (not dry_run and (self.folder / "last.ckpt").exists()):
            return
        try:
            for line in make_plan(self.data, self.options.trainer, scored).lines():
                log.info(line)
        except OutOfMemoryError as error:
            if dry_run:
                raise UserError("a step, not compiled or split, does not fit the device", LESS_MEMORY) from error
            log.warning("no plan: a step, not compiled or split, does not fit the device; training anyway")

    def train(self, picture: Picture, score: Score | None = None) -> TrainingResult:
        """Write the cohort's `manifest.json` and train.

        Args:
            picture: draws samples.
            score: scores samples; None: no scoring.

        Raises:
            UserError: as for `fit`, or the device is out of memory.
        """
        if process_rank() == 0:
            self.manifest.save(self.folder / "manifest.json")
        options = self.options
        try:
            return fit(
                self.data,
                self.folder,
                options.trainer,
                options.logger.name,
                picture=picture,
                init_from=self.base,
                score=score,
            )
        except OutOfMemoryError as error:
            raise UserError("the device is out of memory", LESS_MEMORY, path=self.folder) from error
