"""Where training curves go: Lightning's loggers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger

from medaug.errors import UserError
from medaug.tables import Table

LOGGERS: Table[Callable[[Path], Logger]] = Table(
    "loggers",
    "logger",
    Callable,  # type: ignore[arg-type]  # an abstract class, for isinstance
    key="logger.name",
)
"""Functions from the folder of the run to a logger that writes below it."""


def tensorboard(folder: Path) -> Logger:
    """Lightning's TensorBoardLogger."""
    return loggers.TensorBoardLogger(folder, name="tensorboard", version="")


def csv(folder: Path) -> Logger:
    """Lightning's CSVLogger, a new file per start: with a version of its own it would delete the former one."""
    return loggers.CSVLogger(folder, name="csv")


def wandb(folder: Path) -> Logger:
    """Lightning's WandbLogger."""
    return loggers.WandbLogger(save_dir=folder, project="medaug")


def mlflow(folder: Path) -> Logger:
    """Lightning's MLFlowLogger, which writes files."""
    return loggers.MLFlowLogger(experiment_name="medaug", tracking_uri=f"file:{folder / 'mlflow'}")


def make_logger(name: str, folder: Path) -> Logger:
    """The Lightning logger called `name`, writing below `folder`.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    make = LOGGERS[name]
    try:
        return make(folder)
    except ModuleNotFoundError as error:
        raise UserError(f"logger={name}: {error.name} is not installed", f"pip install 'medaug[{name}]'") from error
