"""Scores samples while a model trains, keeps the best checkpoint, and warns when the model memorises."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from medaug.csv_files import number, read_csv, write_csv
from medaug.evaluation.memorisation import ALARM
from medaug.inputs import parsing
from medaug.training.callbacks import diverged, remove_unfinished, save_whole, stepped
from medaug.training.checkpoint import read_checkpoint
from medaug.training.model import DiffusionModel

log = logging.getLogger(__name__)

_REMOVE = "restore it, or remove it and best.ckpt to score from here on"

Score = Callable[[DiffusionModel, int], dict[str, float]]
"""A function of the averaged model (in evaluation mode) and the step that returns named numbers: `score` in 0..1,
higher is better; `near_copies`, the share of samples that are near copies of training scans; and `near_copies_p`, the
probability of so many among new scans. It must not use the global random state."""


class SampleScoring(Callback):
    """Scores samples of the averaged weights every `every` steps and at the last step.

    Each scoring adds a row to `scores.csv` and logs `sample/<name>`. If the score is higher than all earlier ones,
    `best.ckpt`, a checkpoint like `last.ckpt`, is written. With equal scores the earliest is kept, because it has
    memorised least.

    This callback must come after the weight averaging and before `LastCheckpoint` in the list of callbacks, so that a
    step that a run resumes from has been scored. `best.ckpt` is written before the row and contains its own score. A
    killed run therefore repeats the scorings that are not in the file, compares them with the best one so far, and ends
    with the same files as an uninterrupted run.

    Args:
        folder: folder of the run.
        every: steps between scorings.
        score: computes the numbers. It is called on all ranks, because weights may be split; rank 0's numbers are used.
    """

    def __init__(self, folder: Path, every: int, score: Score) -> None:
        self.table = folder / "scores.csv"
        self.checkpoint = folder / "best.ckpt"
        self.every = every
        self.score = score
        self.best: dict[str, float] | None = None
        self._rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the earlier scores and the best so far; all ranks read, so that a damaged file ends all of them."""
        rows, found = _read(self.table), self.checkpoint.exists()
        best = self._best() if found else None
        self._rows, self.best = trainer.strategy.broadcast((rows, best))
        if trainer.is_global_zero:
            remove_unfinished(self.checkpoint)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score if a scoring is due and not in the file yet."""
        step = trainer.global_step
        due = stepped(trainer, batch_idx) and (step % self.every == 0 or step == trainer.max_steps)
        if not due or step in {row["step"] for row in self._rows}:
            return
        numbers = trainer.strategy.broadcast(self._averaged_score(trainer, pl_module))
        if unclear := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise diverged(trainer, f"the samples' {unclear[0]}")
        if better := self.best is None or numbers["score"] > self.best["score"]:
            self.best = {"step": step, "score": numbers["score"]}
            save_whole(trainer, self.checkpoint)
        warned = any(row["near_copies_p"] < ALARM for row in self._rows)
        self._rows.append({"step": step, **numbers})
        if not trainer.is_global_zero:
            return
        _write(self.table, self._rows)
        for logger in trainer.loggers:
            logger.log_metrics({f"sample/{name}": value for name, value in numbers.items()}, step)
        text = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        log.info("samples at step %d: %s%s", step, text, "; the best so far" if better else "")
        if numbers["near_copies_p"] < ALARM and not warned:
            log.warning(
                "step %d: %.0f%% of the samples are near copies of training scans, more than new scans would be "
                "(p = %.1g): the model memorises; stop early and use best.ckpt, train for fewer steps, or augment more "
                "(trainer.augment)",
                step,
                100 * numbers["near_copies"],
                numbers["near_copies_p"],
            )

    def _best(self) -> dict[str, float]:
        _, contents = read_checkpoint(self.checkpoint)
        with parsing(self.checkpoint, _REMOVE):
            state = contents["callbacks"][self.state_key]
            return {"step": int(state["step"]), "score": float(state["score"])}

    def state_dict(self) -> dict[str, Any]:
        """Step and score of the best checkpoint so far; in `best.ckpt` these are its own."""
        return dict(self.best or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score; a run that was stopped after its last step learns it only from here."""
        self.best = state_dict or None

    def _averaged_score(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        averaging = next(callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging))  # type: ignore[attr-defined]
        # Swap in the averaged weights, and swap back below, as a validation does.
        averaging.on_validation_epoch_start(trainer, pl_module)
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        try:
            return self.score(pl_module.model, trainer.global_step)  # type: ignore[arg-type]
        finally:
            for module, training in modes.items():
                module.training = training
            averaging.on_validation_epoch_end(trainer, pl_module)


def _read(path: Path) -> list[dict[str, float]]:
    if not os.path.lexists(path):
        return []
    rows = read_csv(path, ("step", "score", "near_copies", "near_copies_p"), _REMOVE)
    return [{name: number(value, path, _REMOVE) for name, value in row.items() if value} for row in rows]


def _write(path: Path, rows: list[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(path, columns, [[{**row, "step": int(row["step"])}.get(name, "") for name in columns] for row in rows])
