"""Initialises a training with the weights of an earlier one (`init_from`)."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medaug.cohort.manifest import Manifest
from medaug.diffusion.process import build_process
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.networks.controlnet import ControlledUNet
from medaug.training.checkpoint import Base, averaged_weights, read_checkpoint
from medaug.training.model import DiffusionModel
from medaug.training.tasks import Task, resolve_task

log = logging.getLogger(__name__)

# A frozen base must match in all of these; heads and groups do not show in the shapes of tensors.
_BASE = ("spatial_dims", "channels", "attention", "num_res_blocks", "num_head_channels", "norm_num_groups")


@dataclass(frozen=True)
class Initialised:
    """How many of a network's tensors were initialised from a checkpoint.

    Attributes:
        loaded: number of tensors loaded from the checkpoint.
        total: number of all tensors.
        new: the parts of the network with tensors that were not loaded; they keep their own initialisation.
    """

    loaded: int
    total: int
    new: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.loaded} of {self.total} tensors of the network are initialised from it"
        return f"{text}; new: {', '.join(self.new)}" if self.new else text


def initialise(model: DiffusionModel, path: Path) -> Initialised:
    """Load the averaged weights of a checkpoint into a model wherever they fit, and the whole codec with statistics.

    The network's method `matching_weights` decides which weights fit.

    Raises:
        UserError: as for `read_checkpoint`; codec, target or coordinates option differ; no weights fit; or, for a
            ControlNet, process or U-Net differ or the base is incomplete.
    """
    card, contents = read_checkpoint(path)
    weights, own = averaged_weights(contents), model.state_dict()
    codec = {name: value for name, value in weights.items() if name.startswith("codec.")}
    shapes = {name: value.shape for name, value in own.items() if name.startswith("codec.")}
    if {name: value.shape for name, value in codec.items()} != shapes:
        made = ", ".join(f"codec.{key}={value}" for key, value in card.options["codec"].items())
        raise UserError(
            f"init_from={path}: trained in another space ({made}, {len(card.modalities)} modalities)",
            "train with the same codec and the same number of modalities",
        )
    task = resolve_task(card.options.get("task", {}), card.modalities, card.schema.num_classes)
    if task.target != model.task.target:
        raise UserError(
            f"init_from={path}: trained with task.target={task.target}, and its codec cannot encode "
            f"{model.task.target}s",
            "give a model with the same target",
        )
    controlled = isinstance(model.network, ControlledUNet)
    former, shape = {"coordinates": False} | card.options["network"], asdict(model.network.shape)
    former["coordinates"] |= card.options.get("data", {}).get("patch") is not None  # models of patches always have them
    for key in (*(_BASE if controlled else ()), "coordinates"):
        now = list(shape[key]) if isinstance(shape[key], tuple) else shape[key]
        if former[key] != now:
            raise UserError(f"init_from={path}: trained with network.{key}={former[key]}, not {now}", "set the same")
    if controlled:
        base = replace(build_process(**card.options["process"]), loss_weight=model.process.loss_weight)
        if base != model.process:
            raise UserError(
                f"init_from={path}: trained with another process (process.noise_schedule={base.schedule.name}, "
                f"process.prediction_type={base.prediction.name}), and a ControlNet's base stays frozen",
                "set the same",
            )
    prefix = "network."
    network = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if card.attributes != model.attributes:  # their weights could fit by shape but mean other attributes
        network = {name: value for name, value in network.items() if ".class_embedding." not in name}
    same_planes = (_planes(task), bool(card.options["network"].get("field_of_view"))) == (
        _planes(model.task),
        model.field_of_view,
    )
    try:
        matching = model.network.matching_weights(network, same_planes)
    except ValueError as error:
        raise UserError(f"init_from={path}: {error}") from error
    loaded = {prefix + name: value for name, value in matching.items()}
    if all(value.ndim < 2 for value in loaded.values()):  # biases fit other networks of the same width by chance
        raise UserError(f"init_from={path}: no weight of its network fits this one", "set the same network.* keys")
    model.load_state_dict(own | codec | loaded)
    names = [name for name in own if name.startswith(prefix)]
    parts = dict.fromkeys(".".join(name.split(".")[1:3]) for name in names if name not in loaded)
    return Initialised(len(loaded), len(names), tuple(parts))


def _planes(task: Task) -> tuple[object, ...]:
    """What the planes of a task's condition mean: two tasks can have equally many planes of different meaning."""
    return task.num_masks, task.given, task.num_images


def read_base(path: Path, manifest: Manifest) -> Base:
    """Describe the checkpoint that a training on `manifest` is initialised from, for the training's card.

    Warns if the checkpoint saw subjects of the test split, because the benchmark will refuse the model, and if its
    modalities or classes have other names, because they are matched by order.
    """
    card, _ = read_checkpoint(path)
    names = (
        ("modalities", card.modalities, manifest.modalities),
        ("classes", card.schema.names, manifest.schema.names),
    )
    for what, theirs, ours in names:
        if len(theirs) == len(ours) and theirs != ours:
            log.warning(
                "init_from=%s: its %s are %s; their weights initialise %s, matched by order",
                path,
                what,
                ", ".join(theirs),
                ", ".join(ours),
            )
    if leaked := card.seen.test_subjects(manifest):
        log.warning(
            "init_from=%s: its training saw %d subject(s) of the test split (%s first); the benchmark will refuse this "
            "model",
            path,
            len(leaked),
            leaked[0],
        )
    return Base(
        card.experiment,
        file_sha256(path),
        {split: list(names) for split, names in card.seen.subjects.items()},
        sorted(card.seen.contents),
    )


def base_digest(base: Path, folder: Path) -> str:
    """SHA-256 of the checkpoint that a training in `folder` is initialised from.

    Raises:
        UserError: there is no such file, or it lies in the run's own folder.
    """
    if not base.is_file() or folder.resolve() in base.resolve().parents:
        reason = "lies in the folder of this run" if base.is_file() else "no such file"
        raise UserError(f"init_from={base}: {reason}", "give the last.ckpt of another training")
    return file_sha256(base)
