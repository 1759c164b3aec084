"""Checks of a training's options, made before anything is written."""

from __future__ import annotations

from medaug.config import part
from medaug.data.cohorts import require_data
from medaug.data.grid import check_intensity
from medaug.diffusion.process import Process, build_process
from medaug.errors import UserError
from medaug.networks.build import network_parameters
from medaug.networks.codec_table import CODECS
from medaug.options import Options, SamplerOptions
from medaug.training.data import check_patch
from medaug.training.hardware import check_device, check_processes
from medaug.training.model import DiffusionModel


def check_training(options: Options) -> Process:
    """Refuse options that do not work together, beyond what their declarations say.

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
    check_device(options.trainer)
    if not options.train.dry_run:
        check_processes(options.trainer)
    trainer, task = options.trainer, options.task
    if trainer.image_dropout and not task.given and task.degradation == "none":
        raise UserError(
            f"trainer.image_dropout={trainer.image_dropout:g}: has no effect, this task has no input images",
            "leave it out",
        )
    if options.masks.checkpoint is not None:
        raise UserError("masks.checkpoint: while a model trains, no mask generator is used", "leave it out")
    check_intensity(options.data)
    check_patch(options)
    CODECS[options.codec.name].parameters(options.codec)
    network_parameters(options.network.name, options.network.parameters)
    require_data(options.data)
    try:
        return build_process(**part(options, "process")["process"])
    except ValueError as error:
        raise UserError(f"process: {error}") from error


def check_overlap(model: DiffusionModel, sampler: SamplerOptions) -> None:
    """Refuse an overlap of windows for a model of whole volumes.

    Raises:
        UserError: the overlap has no effect.
    """
    if sampler.overlap is not None and model.patch is None:
        raise UserError(
            f"sampler.overlap={sampler.overlap:g}: has no effect, the model was trained on whole volumes",
            "leave it out, or train with data.patch",
        )
