"""Lightning callbacks: atomic checkpoints, a clean stop on signals, the validation curve, and progress reports."""

from __future__ import annotations

import logging
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging

from medaug.csv_files import number, read_csv, write_csv
from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.networks.finite import not_finite
from medaug.training.archive import check_optimizers
from medaug.training.signals import StopSignals

log = logging.getLogger(__name__)

RESTORE = "restore it, or remove it to begin again"
_REMOVE = "restore it, or remove it to begin a new curve"


def stepped(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this batch completes an optimisation step; with gradient accumulation not every batch does."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def save_whole(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint atomically. All ranks take part in saving; rank 0 writes.

    Raises:
        UserError: a weight is NaN or infinite; an existing checkpoint is left as it is.
    """
    averages = [c._average_model for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
    networks = [trainer.lightning_module, *averages]
    weights = [network.state_dict() for network in networks if network is not None]
    damaged = torch.tensor(not_finite(weights) is not None, dtype=torch.int32, device=trainer.lightning_module.device)
    if trainer.world_size > 1:  # each rank may hold a different part of the weights
        damaged = trainer.strategy.reduce(damaged, reduce_op="max")
    if damaged:
        raise diverged(trainer, "a weight")
    with atomic_write(path) if trainer.is_global_zero else nullcontext(path) as target:
        trainer.save_checkpoint(target)


def remove_unfinished(path: Path) -> None:
    """Delete temporary files of `path` left by killed writers; no other process may be writing it now."""
    for leftover in path.parent.glob(f".tmp-*-{path.name}"):
        leftover.unlink()


def diverged(trainer: Trainer, what: str) -> UserError:
    """The error to raise when a training has diverged; `what` is NaN or infinite."""
    return UserError(
        f"step {trainer.global_step}: {what} is NaN or infinite: the training has diverged",
        "checkpoints of earlier steps are kept. Lower trainer.learning_rate and train again (overwrite=true)",
    )


class StopAtDivergence(Callback):
    """Ends the training at the first step or validation whose loss is NaN or infinite.

    It must come before `SampleScoring` and `LastCheckpoint` in the list of callbacks, so that the step is neither
    scored nor saved. All ranks see the same loss and end together.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss of the step."""
        if stepped(trainer, batch_idx) and not torch.isfinite(trainer.callback_metrics["train/loss"]):
            raise diverged(trainer, "the loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation losses."""
        losses = {name: loss for name, loss in trainer.callback_metrics.items() if name.startswith("val/")}
        if not_finite(losses) is not None:
            raise diverged(trainer, "the validation loss")


class LastCheckpoint(Callback):
    """Writes `last.ckpt` every `every` steps, at the last step, and when a signal stops the run.

    A signal (see `StopSignals`) ends the run after the current step; `signals.received` then holds its number, on every
    rank. `started` becomes true when training begins, after everything in the checkpoint was restored.
    It must come after the weight averaging in the list of callbacks.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.started = False
        self.signals = StopSignals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, because its SIGTERM handler exits in the middle of the loop."""
        self.started = True
        check_optimizers(trainer.optimizers, self.path, RESTORE)
        self.signals.listen()
        if trainer.is_global_zero:
            remove_unfinished(self.path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due."""
        if not stepped(trainer, batch_idx):
            return
        step, stop = trainer.global_step, self._agreed(trainer, pl_module)
        if stop or step % self.every == 0 or step == trainer.max_steps:
            save_whole(trainer, self.path)
            if stop:
                self.signals.received = stop
                trainer.should_stop = True
                trainer.limit_val_batches = 0  # stop without another validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers, and share a signal that came since the last step with all ranks."""
        self.signals.release()
        self.signals.received = self._agreed(trainer, pl_module)

    def _agreed(self, trainer: Trainer, pl_module: LightningModule) -> int | None:
        """The signal that any rank has received."""
        number = self.signals.received
        if trainer.world_size > 1:
            own = torch.tensor(number or 0, device=pl_module.device)
            number = int(trainer.strategy.reduce(own, reduce_op="max")) or None
        return number


class ValidationCurve(Callback):
    """Writes a row of `validation.csv` per validation: the step and every `val/` metric.

    A resumed run replaces the rows after its checkpoint and catches up on a validation that was due at its checkpoint,
    so the file is the same however often the run was killed.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def missing(self, trainer: Trainer) -> bool:
        """Whether the validation due at this step is missing from the file; the same on all ranks."""
        step = trainer.global_step
        absent = step > 0 and step % self.every == 0 and step not in self._rows()
        return bool(trainer.strategy.broadcast(absent))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a validation that was due at the checkpoint but did not finish."""
        if self.missing(trainer):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.restarting = False
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record it; what is on record of later steps is about to be repeated."""
        if not trainer.is_global_zero:
            return
        step, prefix = trainer.global_step, "val/"
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        row = {"step": str(step)} | {name.removeprefix(prefix): f"{float(v):.9g}" for name, v in metrics.items()}
        rows = [former for at, former in self._rows().items() if at < step] + [row]
        columns = list(dict.fromkeys(name for line in rows for name in line))
        write_csv(self.path, columns, [[line.get(name, "") for name in columns] for line in rows])

    def loss(self) -> float | None:
        """The latest `val/loss` in the file, whichever process computed it; None if there is none."""
        rows = self._rows()
        return number(rows[max(rows)]["loss"], self.path, _REMOVE) if rows else None

    def _rows(self) -> dict[int, dict[str, str]]:
        if not os.path.lexists(self.path):
            return {}
        rows = read_csv(self.path, ("step", "loss"), _REMOVE)
        return {int(number(row["step"], self.path, _REMOVE)): row for row in rows}


class Progress(RichProgressBar):
    """Lightning's progress bar with step, elapsed and remaining time, loss, and samples per second."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(refresh_rate=1, leave=False)
        self._rate = Rate(batch_size)

    def _get_train_description(self, current_epoch: int) -> str:
        # To Lightning a run is a single epoch, so its epoch number means nothing.
        return "training"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Loss and throughput, without the logger's version number."""
        metrics = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return metrics | {"samples/s": f"{self._rate(trainer):.1f}"}


class ProgressLines(Callback):
    """Progress for a log file: a line every `seconds`, with step, loss, samples per second and remaining time."""

    def __init__(self, batch_size: int, seconds: float = 30.0) -> None:
        self._rate = Rate(batch_size)
        self._batch_size = batch_size
        self._seconds = seconds
        self._said = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a line if one is due."""
        if not stepped(trainer, batch_idx):
            return
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
    """Samples per second over all devices, since the first call."""

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
