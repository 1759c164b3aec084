"""One training run: model, data, callbacks and resuming."""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import OutOfMemoryError
from torch.distributed import DistNetworkError

from medaug.errors import UserError
from medaug.inputs import parsing
from medaug.options import TrainerOptions
from medaug.training import requeue
from medaug.training.autoencoder import prepare_codec
from medaug.training.averaging import PowerFunctionAverage
from medaug.training.callbacks import (
    RESTORE,
    LastCheckpoint,
    Progress,
    ProgressLines,
    StopAtDivergence,
    ValidationCurve,
)
from medaug.training.checkpoint import Card, read_checkpoint
from medaug.training.data import TrainingData
from medaug.training.hardware import ScaledGradients, check_device, make_strategy
from medaug.training.initial import initialise
from medaug.training.loggers import make_logger
from medaug.training.module import DiffusionData, DiffusionModule, Picture
from medaug.training.ranks import prepared_ranks
from medaug.training.scoring import SampleScoring, Score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished training; it is the same however often the run was stopped.

    Attributes:
        step: last optimisation step.
        parameters: number of parameters of the network.
        training_cases, labelled_cases, validation_cases: how many there are; labelled cases are training cases.
        validation_loss: validation loss of the averaged weights at the end; None: there was no validation.
        best: step and score of `best.ckpt`; None if no samples were scored.
    """

    step: int
    parameters: int
    training_cases: int
    labelled_cases: int
    validation_cases: int
    validation_loss: float | None
    best: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the run's summary."""
        values = {key: value for key, value in asdict(self).items() if key != "best"}
        return values | {f"best_{name}": value for name, value in (self.best or {}).items()}


def fit(
    data: TrainingData,
    folder: Path,
    budget: TrainerOptions,
    logger: str,
    *,
    picture: Picture | None = None,
    init_from: Path | None = None,
    score: Score | None = None,
) -> TrainingResult:
    """Prepare the codec, then train to `budget.max_steps`, from `last.ckpt` or from the weights of `init_from`.

    Args:
        data: scans and card of the model.
        folder: folder of the run.
        budget: the `trainer` options.
        logger: name of the logger.
        picture: draws samples at every validation and, while a codec trains, its reconstructions.
        init_from: checkpoint whose weights the training is initialised with.
        score: scores samples every `budget.score_every` steps; the checkpoint with the best score is `best.ckpt`.

    Raises:
        UserError: a checkpoint that cannot be resumed, an option that cannot be satisfied, or a diverged training.
        SystemExit: stopped by a signal after saving; the status is 128 + the signal's number.
    """
    check_device(budget)
    path, card = folder / "last.ckpt", data.card
    if path.exists():
        _check(path, card, budget)
    module = DiffusionModule(card, budget, picture)
    writer = make_logger(logger, folder)
    if init_from is not None and not path.exists():
        log.info("init_from=%s: %s", init_from, initialise(module.model, init_from))
    elif not path.exists():  # a checkpoint holds the codec
        reconstruction = None if picture is None else partial(picture, made="reconstruction")
        prepare_codec(module.model.codec, data, module.model.target, folder, budget, writer, reconstruction)
    parameters = sum(p.numel() for p in module.model.parameters())
    last = LastCheckpoint(path, budget.checkpoint_every)
    curve = ValidationCurve(folder / "validation.csv", min(budget.validate_every, budget.max_steps))
    scoring = None if score is None else SampleScoring(folder, budget.score_every, score)
    conditions = card.attributes, card.sliced, data.patches, module.model.field_of_view
    batches = DiffusionData(data.train, data.val, budget, *conditions)
    trainer = _run(module, batches, folder, writer, last, curve, scoring)
    if last.signals.received is not None:
        last.signals.leave(f"stopped at step {trainer.global_step}", trainer.is_global_zero)
    return TrainingResult(
        step=trainer.global_step,
        parameters=parameters,
        training_cases=len(data.train),
        labelled_cases=len(data.labelled),
        validation_cases=len(data.val),
        validation_loss=curve.loss(),
        best=None if scoring is None else scoring.best,
    )


def _run(
    module: DiffusionModule,
    data: DiffusionData,
    folder: Path,
    writer: Logger,
    last: LastCheckpoint,
    curve: ValidationCurve,
    scoring: SampleScoring | None,
) -> Trainer:
    """Train to the end, or until a signal; returns the trainer as it ended."""
    path, budget = folder / "last.ckpt", module.budget
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # tips, and hardware that is missing
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # it is: see data/batches.py
        warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # every rank validates on all cases
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # not every training is a SLURM job
        progress: Callback = (Progress if sys.stderr.isatty() else ProgressLines)(budget.batch_size * budget.accumulate)
        average = PowerFunctionAverage(budget.ema_sigma_rel)
        # Scoring swaps in the averaged weights, and must come before the checkpoint: see SampleScoring.
        scorers = [] if scoring is None else [scoring]
        trainer = make_trainer(budget, folder, writer, [average, StopAtDivergence(), *scorers, last, curve, progress])
        resumed = path.exists()
        with prepared_ranks(trainer):
            try:
                trainer.fit(module, datamodule=data, ckpt_path=path if resumed else None, weights_only=True)
            except DistNetworkError as error:
                reason = str(error).splitlines()[0]
                remedy = "set MASTER_PORT to a free port, and MASTER_ADDR to a machine that all processes can reach"
                raise UserError("the processes of this training cannot connect", remedy, detail=reason) from error
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
                if last.started or not resumed or isinstance(error, OutOfMemoryError):
                    raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise UserError(f"cannot be resumed ({reason:.120})", RESTORE, path=path) from error
            # killed between the last step and its validation
            if last.signals.received is None and curve.missing(trainer):
                trainer.validate(module, datamodule=data, verbose=False)
    return trainer


def make_trainer(budget: TrainerOptions, folder: Path, logger: Logger, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer for the options."""
    plugins: list[Any] = [environment for environment in (requeue.environment(),) if environment is not None]
    if budget.precision == "fp16":
        plugins.append(ScaledGradients("16-mixed", "cuda"))
    return Trainer(
        default_root_dir=folder,
        accelerator=budget.accelerator,
        devices=budget.devices,
        num_nodes=budget.num_nodes,
        strategy=make_strategy(budget),
        plugins=plugins,
        max_steps=budget.max_steps,
        max_epochs=-1,
        val_check_interval=min(budget.validate_every, budget.max_steps) * budget.accumulate,
        accumulate_grad_batches=budget.accumulate,
        num_sanity_val_steps=0,
        gradient_clip_val=budget.gradient_clip,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, Progress) for callback in callbacks),
        use_distributed_sampler=False,
        log_every_n_steps=min(50, -(-budget.max_steps // 20)),
    )


def _check(path: Path, card: Card, budget: TrainerOptions) -> None:
    former, contents = read_checkpoint(path)
    if former.experiment != card.experiment:
        raise UserError(
            f"belongs to experiment {former.experiment}, not {card.experiment}", "remove it to begin again", path=path
        )
    then, now = former.to_dict(), card.to_dict()
    parts = ("subjects", "labels", "modalities", "preprocessing", "attributes")
    if changed := [key for key in parts if then[key] != now[key]]:
        raise UserError(
            f"the cohort changed since this run began ({', '.join(changed)})",
            f"restore it, remove {path.parent} to begin again, or keep both with runs=DIR",
            path=path,
        )
    if changed := [name for name, files in former.contents.items() if list(files) != list(card.contents.get(name, []))]:
        raise UserError(
            f"files of {changed[0]} ({len(changed)} cases in all) changed since this run began",
            f"restore them, remove {path.parent} to begin again, or keep both with runs=DIR",
            path=path,
        )
    with parsing(path, RESTORE):
        step = int(contents["global_step"])
    if step > budget.max_steps:
        raise UserError(f"has {step} steps already, more than trainer.max_steps={budget.max_steps}", path=path)
    log.info("going on from step %d of %d", step, budget.max_steps)
