"""One training run: model, data, callbacks, and where it goes on."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.training.averaging import PowerFunctionAverage
from medaug.training.callbacks import LastCheckpoint, Progress, ProgressLines, ValidationCurve
from medaug.training.checkpoint import Card, read_checkpoint
from medaug.training.hardware import ScaledGradients, check_trainer, make_strategy
from medaug.training.task import DiffusionData, DiffusionTask, Picture

log = logging.getLogger(__name__)

LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")


def fit(
    card: Card,
    train: Sequence[ModelCase],
    val: Sequence[ModelCase],
    folder: Path,
    budget: TrainerOptions,
    logger: str,
    picture: Picture | None = None,
) -> dict[str, Any]:
    """Train to `budget.max_steps`, from `last.ckpt` where there is one.

    Returns:
        step, parameters, training and validation cases, for the run's summary.

    Raises:
        UserError: a checkpoint that cannot be continued, or an option that cannot be met.
        SystemExit: stopped by a signal after saving; the status is 128 + the signal's number.
    """
    check_trainer(budget)
    path = folder / "last.ckpt"
    if path.exists():
        _check(path, card, budget)
    task = DiffusionTask(card, budget, picture)
    task.model.codec.fit(torch.from_numpy(case.image.copy()) for case in train)
    data = DiffusionData(train, val, budget)
    parameters = sum(p.numel() for p in task.model.parameters())
    validate_every = min(budget.validate_every, budget.max_steps)
    last = LastCheckpoint(path, budget.checkpoint_every)
    curve = ValidationCurve(folder / "validation.csv", validate_every)
    progress = Progress if sys.stderr.isatty() else ProgressLines
    callbacks = [
        PowerFunctionAverage(budget.ema_sigma_rel),
        last,
        curve,
        progress(budget.batch_size * budget.accumulate),
    ]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what hardware there is not, and tips
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # it is: see data/batches.py
        warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # every rank validates on all cases
        trainer = Trainer(
            default_root_dir=folder,
            accelerator=budget.accelerator,
            devices=budget.devices,
            num_nodes=budget.num_nodes,
            strategy=make_strategy(budget),
            plugins=[ScaledGradients("16-mixed", "cuda")] if budget.precision == "fp16" else None,
            max_steps=budget.max_steps,
            max_epochs=-1,
            val_check_interval=validate_every * budget.accumulate,
            accumulate_grad_batches=budget.accumulate,
            num_sanity_val_steps=0,
            gradient_clip_val=budget.gradient_clip,
            logger=make_logger(logger, folder),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress is Progress,
            use_distributed_sampler=False,
            log_every_n_steps=min(50, -(-budget.max_steps // 20)),
        )
        trainer.fit(task, datamodule=data, ckpt_path=path if path.exists() else None, weights_only=True)
        if last.stopped_by is None and curve.missing(trainer):  # killed between the last step and its validation
            trainer.validate(task, datamodule=data, verbose=False)
    if last.stopped_by is not None:
        log.info("stopped at step %d; the same command goes on from there", trainer.global_step)
        sys.exit(128 + last.stopped_by)
    loss = trainer.callback_metrics.get("val/loss")  # absent where nothing was left to do
    return {
        "step": trainer.global_step,
        "parameters": parameters,
        "training_cases": len(train),
        "labelled_cases": sum(case.label is not None for case in train),
        "validation_cases": len(val),
        "validation_loss": None if loss is None else float(loss),
    }


def _check(path: Path, card: Card, budget: TrainerOptions) -> None:
    former, contents = read_checkpoint(path)
    if former.experiment != card.experiment:
        raise UserError(f"{path}: of experiment {former.experiment}, not {card.experiment}; remove it to begin again")
    then, now = former.to_dict(), card.to_dict()
    if changed := [key for key in ("subjects", "labels", "modalities", "preprocessing") if then[key] != now[key]]:
        raise UserError(
            f"{path}: the cohort changed since this run began ({', '.join(changed)}); restore it, remove "
            f"{path.parent} to begin again, or keep both with runs=DIR"
        )
    if contents["global_step"] > budget.max_steps:
        raise UserError(
            f"{path}: has {contents['global_step']} steps already, more than trainer.max_steps={budget.max_steps}"
        )
    log.info("going on from step %d of %d", contents["global_step"], budget.max_steps)


def make_logger(name: str, folder: Path) -> Logger:
    """The Lightning logger called `name`, writing below `folder`.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    from lightning.pytorch import loggers

    try:
        if name == "tensorboard":
            return loggers.TensorBoardLogger(folder, name="tensorboard", version="")
        if name == "csv":
            return loggers.CSVLogger(folder, name="csv")  # a file per start: it would delete the former one
        if name == "wandb":
            return loggers.WandbLogger(save_dir=folder, project="medaug")
        if name == "mlflow":
            return loggers.MLFlowLogger(experiment_name="medaug", tracking_uri=f"file:{folder / 'mlflow'}")
    except ModuleNotFoundError as error:
        raise UserError(f"logger={name}: {error.name} is not installed; pip install 'medaug[{name}]'") from error
    raise UserError(f"logger.name={name}: not one of {', '.join(LOGGERS)}")
