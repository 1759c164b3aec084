"""Averaged weights, whole checkpoints, a clean stop, and a progress bar that tells what a user wants to know."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging
from torch import Tensor

from medaug.files import atomic_write
from medaug.training.signals import StopSignals

log = logging.getLogger(__name__)


def ema(decay: float) -> WeightAveraging:
    """Exponential moving average of the weights, with the decay warmed up as (1 + n) / (10 + n)."""

    def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        n = float(num_averaged)
        return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    # The codec's statistics are measured, not trained: averaging buffers would only round them.
    return WeightAveraging(use_buffers=False, avg_fn=average)


def save_whole(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint, whole or not at all. All ranks take part in saving; the first one writes."""
    with atomic_write(path) if trainer.is_global_zero else nullcontext(path) as target:
        trainer.save_checkpoint(target)


class LastCheckpoint(Callback):
    """Keeps `last.ckpt` whole: every so many steps, at the last one, and when the run is asked to stop.

    A signal (see `StopSignals`) ends the run after the step in hand; `signals.received` then holds its number, on every
    rank.
    It must come after the weight averaging in the list of callbacks.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.signals = StopSignals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for the signals, in place of Lightning, whose SIGTERM leaves in the middle of the loop."""
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due."""
        step = trainer.global_step
        stop = self.signals.received or 0
        if trainer.world_size > 1:
            stop = int(trainer.strategy.reduce(torch.tensor(stop, device=pl_module.device), reduce_op="max"))
        if stop or step % self.every == 0 or step == trainer.max_steps:
            save_whole(trainer, self.path)
            if stop:
                self.signals.received = stop
                trainer.should_stop = True
                trainer.limit_val_batches = 0  # whoever asks to stop does not wait for a validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self.signals.release()


class Progress(RichProgressBar):
    """Lightning's bar with step, time spent and left, loss, and samples per second."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(refresh_rate=1, leave=False)
        self._rate = Rate(batch_size)

    def _get_train_description(self, current_epoch: int) -> str:
        # Batches are numbered by step, so that a run is one epoch to Lightning whatever it is to the cohort.
        return "training"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Loss and throughput; the version number of the logger says nothing to a user."""
        metrics = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return metrics | {"samples/s": f"{self._rate(trainer):.1f}"}


class ProgressLines(Callback):
    """The same for a log file: a line now and then, with step, loss, samples per second and the time left."""

    def __init__(self, batch_size: int, seconds: float = 30.0) -> None:
        self._rate = Rate(batch_size)
        self._batch_size = batch_size
        self._seconds = seconds
        self._said = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say it where it is due."""
        rate = self._rate(trainer)
        if not trainer.is_global_zero or time.monotonic() - self._said < self._seconds or not rate:
            return
        self._said = time.monotonic()
        left = (trainer.max_steps - trainer.global_step) * self._batch_size * trainer.world_size / rate
        log.info(
            "step %d of %d, loss %.4f, %.1f samples/s, %d min %02d s left",
            trainer.global_step,
            trainer.max_steps,
            float(trainer.callback_metrics["train/loss"]),
            rate,
            *divmod(round(left), 60),
        )


class Rate:
    """Samples per second of all devices together, since the first call."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._first: tuple[int, float] | None = None

    def __call__(self, trainer: Trainer) -> float:
        """The rate so far; 0 before the second step."""
        step, now = trainer.global_step, time.monotonic()
        if self._first is None:
            self._first = (step, now)
        steps = step - self._first[0]
        return steps * self._batch_size * trainer.world_size / (now - self._first[1]) if steps else 0.0
