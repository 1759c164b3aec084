"""Checks of a training's options, made before anything is written."""

from __future__ import annotations

from medaug.config import part
from medaug.data.cohorts import require_data
from medaug.data.grid import check_options
from medaug.diffusion.process import Process, build_process
from medaug.errors import UserError
from medaug.networks.codec_table import check_codec
from medaug.options import Options, TrainerOptions
from medaug.training.hardware import check_processes, check_trainer


def check_training(options: Options) -> Process:
    """Refuse options that do not work together or would have no effect.

    Returns:
        The process that the options describe.

    Raises:
        UserError: names the key and the way out.
    """
    if options.network.name == "controlnet" and not options.train.init_from:
        raise UserError(
            "network=controlnet: needs a base",
            "train one with task=unconditional, then give its last.ckpt as init_from=FILE",
        )
    check_trainer(options.trainer)
    if not options.train.dry_run:
        check_processes(options.trainer)
    _check_dropout(options)
    if options.masks.checkpoint is not None:
        raise UserError("masks.checkpoint: while a model trains, no mask generator is used", "leave it out")
    check_options(options.data)
    check_codec(options.codec, pretrained=options.train.init_from is not None)
    require_data(options.data)
    try:
        return build_process(**part(options, "process")["process"])
    except ValueError as error:
        raise UserError(f"process: {error}") from error


def _check_dropout(options: Options) -> None:
    """Refuse dropout of a condition that the task does not have."""
    trainer, task, usual = options.trainer, options.task, TrainerOptions()
    for key, has, what in (
        ("class_dropout", task.mask, "task.mask=false, so there are no classes"),
        ("image_dropout", task.given or task.degradation != "none", "this task has no input images"),
        ("attribute_dropout", options.data.attributes, "data.attributes names none"),
    ):
        if not has and (share := getattr(trainer, key)) != getattr(usual, key):
            raise UserError(f"trainer.{key}={share:g}: has no effect, {what}", "leave it out")
