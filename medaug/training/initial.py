"""Beginning a training from the weights of an earlier one (`init_from`)."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medaug.cohort.manifest import Manifest
from medaug.diffusion.process import Process
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.networks.controlnet import ControlledUNet
from medaug.training.checkpoint import Base, averaged_weights, read_checkpoint
from medaug.training.model import DiffusionModel
from medaug.training.tasks import Task, resolve_task

log = logging.getLogger(__name__)

# Of a base that is not trained again all must agree, heads and groups too, which leave no trace in a tensor's shape.
_BASE = ("spatial_dims", "channels", "attention", "num_res_blocks", "num_head_channels", "norm_num_groups")


@dataclass(frozen=True)
class Initialised:
    """What became of a network's tensors.

    Attributes:
        taken: how many begin from the checkpoint.
        total: how many there are.
        new: the parts of the network that hold the others, which begin as without a checkpoint.
    """

    taken: int
    total: int
    new: tuple[str, ...]

    def __str__(self) -> str:
        told = f"{self.taken} of {self.total} tensors of the network begin from it"
        return f"{told}; new: {', '.join(self.new)}" if self.new else told


def initialise(model: DiffusionModel, path: Path) -> Initialised:
    """Give a model the averaged weights of a checkpoint wherever they fit, and the whole codec with its statistics.

    What fits is the network's to say: see `ConditionalUNet.adopt` and, for a ControlNet, `ControlledUNet.adopt`.

    Raises:
        UserError: as `read_checkpoint`; a codec of another make, another target, other coordinates, nothing that fits;
            for a ControlNet another process, another U-Net, or no whole base.
    """
    card, contents = read_checkpoint(path)
    weights, own = averaged_weights(contents), model.state_dict()
    codec = {name: value for name, value in weights.items() if name.startswith("codec.")}
    shapes = {name: value.shape for name, value in own.items() if name.startswith("codec.")}
    if {name: value.shape for name, value in codec.items()} != shapes:
        made = ", ".join(f"codec.{key}={value}" for key, value in card.options["codec"].items())
        raise UserError(
            f"init_from={path}: made in another space ({made}, {len(card.modalities)} channels of the scans); "
            "train with the same codec and as many channels"
        )
    task = resolve_task(card.options.get("task", {}), card.modalities, card.schema.num_classes)
    if task.target != model.task.target:
        raise UserError(
            f"init_from={path}: made with task.target={task.target}, whose codec does not fit {model.task.target}s; "
            "give a model of the same target"
        )
    controlled = isinstance(model.network, ControlledUNet)
    former, shape = {"coordinates": False} | card.options["network"], asdict(model.network.shape)
    for key in (*(_BASE if controlled else ()), "coordinates"):
        now = list(shape[key]) if isinstance(shape[key], tuple) else shape[key]
        if former[key] != now:
            raise UserError(f"init_from={path}: made with network.{key}={former[key]}, not {now}; set the same")
    if controlled:
        base = replace(Process(**card.options["process"]), loss_weight=model.process.loss_weight)
        if base != model.process:
            raise UserError(
                f"init_from={path}: made with another process (process.noise_schedule={base.noise_schedule}, "
                f"process.prediction_type={base.prediction_type}), and a base is not trained again; set the same"
            )
    prefix = "network."
    network = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if card.attributes != model.attributes:  # of equal length they would fit, and mean something else
        network = {name: value for name, value in network.items() if ".class_embedding." not in name}
    same_planes = _told(task) == _told(model.task)
    try:
        adopted = {prefix + name: value for name, value in model.network.adopt(network, same_planes).items()}
    except ValueError as error:
        raise UserError(f"init_from={path}: {error}") from error
    if all(value.ndim < 2 for value in adopted.values()):  # biases of the same length mean nothing
        raise UserError(f"init_from={path}: no weight of its network fits this one; set the same network.* keys")
    model.load_state_dict(own | codec | adopted)
    names = [name for name in own if name.startswith(prefix)]
    parts = dict.fromkeys(".".join(name.split(".")[1:3]) for name in names if name not in adopted)
    return Initialised(len(adopted), len(names), tuple(parts))


def _told(task: Task) -> tuple[object, ...]:
    """What the planes of a task's condition are: as many of them may be masks in one task and images in another."""
    return task.num_masks, task.given, task.num_images


def read_base(path: Path, manifest: Manifest) -> Base:
    """What the card of a training on `manifest` says about the checkpoint that it begins from.

    Warns where the checkpoint saw subjects of the test split, which the benchmark will refuse, and where it has as many
    modalities or classes under other names, which begin in their order.
    """
    card, _ = read_checkpoint(path)
    names = (
        ("modalities", card.modalities, manifest.modalities),
        ("classes", card.schema.names, manifest.schema.names),
    )
    for what, theirs, ours in names:
        if len(theirs) == len(ours) and theirs != ours:
            log.warning(
                "init_from=%s: its %s were %s; here %s begin from them in this order",
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
    """SHA-256 of the checkpoint that a training in `folder` begins from.

    Raises:
        UserError: there is no such file, or the training itself writes it.
    """
    if not base.is_file() or folder.resolve() in base.resolve().parents:
        reason = "lies in the folder of this very run" if base.is_file() else "no such file"
        raise UserError(f"init_from={base}: {reason}; give the last.ckpt of another training")
    return file_sha256(base)
