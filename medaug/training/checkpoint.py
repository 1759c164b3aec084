"""The model card in a checkpoint, and reading checkpoints without running code from them."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Contents, Seen
from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.keys import check_stored
from medaug.networks.finite import not_finite
from medaug.training.archive import load_weights, misfit, read_archive
from medaug.training.model import DiffusionModel
from medaug.training.tasks import resolve_task

log = logging.getLogger(__name__)

FORMAT = 2
"""Format 1 stored only the `labels` of a schema."""


_REMEDY = "restore it or train again"
_BUILT_FROM = ("data.patch", "task", "codec", "network", "process", "trainer.precision", "trainer.region_weight")


@dataclass(frozen=True)
class Base:
    """The checkpoint that a training was initialised from.

    Attributes:
        experiment: name of its experiment.
        sha256: SHA-256 of the checkpoint file.
        subjects: per split, the subjects that its training and all earlier ones saw.
        contents: SHA-256 of the files that they read; empty in checkpoints of older versions.
    """

    experiment: str
    sha256: str
    subjects: dict[str, list[str]]
    contents: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """The model card: everything in a checkpoint but the weights.

    Attributes:
        experiment: name of the experiment.
        options: the `data`, `task`, `codec`, `network`, `process` and `trainer` options as plain dictionaries.
        preprocessing: preprocessing fitted on the training split.
        schema: label schema.
        modalities: modalities of the cohort, in order.
        subjects: per split, the subjects that training (`train`) and model selection (`val`) saw.
        phantom: whether the cohort consists of phantoms.
        attributes: encoder of the attributes that the model is conditioned on, fitted on the training split.
        base: the checkpoint that the training was initialised from (`init_from`); None: random weights.
        scale: per modality, the intensities that become -1 and 1 in the scan's units, medians over the training split.
            Generated modalities that the scan does not have use them. Empty in checkpoints of older versions.
        contents: per case that training and model selection saw, the SHA-256 of its files. Empty in checkpoints of
            older versions.
        preset: preset of the training; "" in checkpoints of older versions.
    """

    experiment: str
    options: dict[str, Any]
    preprocessing: Preprocessing
    schema: LabelSchema
    modalities: tuple[str, ...]
    subjects: dict[str, list[str]]
    phantom: bool
    attributes: AttributeEncoder = NO_ATTRIBUTES
    base: Base | None = None
    scale: tuple[tuple[float, float], ...] = ()
    contents: Contents = field(default_factory=dict)
    preset: str = ""

    @property
    def sliced(self) -> bool:
        """Whether the network is 2D and processes each axial slice by itself."""
        return bool(self.options["network"]["spatial_dims"] == 2)

    @property
    def seen(self) -> Seen:
        """What this training and the trainings that it was initialised from saw."""
        own = Seen(self.subjects, frozenset(digest for files in self.contents.values() for digest in files))
        return own if self.base is None else own | Seen(self.base.subjects, frozenset(self.base.contents))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT,
            "experiment": self.experiment,
            "options": self.options,
            "preprocessing": self.preprocessing.to_dict(),
            "labels": self.schema.to_mapping(),
            "modalities": list(self.modalities),
            "subjects": self.subjects,
            "phantom": self.phantom,
            "attributes": self.attributes.to_dict(),
            "base": None if self.base is None else asdict(self.base),
            "scale": [list(limits) for limits in self.scale],
            "contents": {name: list(digests) for name, digests in self.contents.items()},
            "preset": self.preset,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Card:
        """The inverse of `to_dict`."""
        labels = values["labels"]
        return cls(
            experiment=values["experiment"],
            options=values["options"],
            preprocessing=Preprocessing.from_dict(values["preprocessing"]),
            schema=LabelSchema.from_mapping(labels if values["format"] > 1 else {"labels": labels}),
            modalities=tuple(values["modalities"]),
            subjects=values["subjects"],
            phantom=values["phantom"],
            attributes=AttributeEncoder.from_dict(values.get("attributes", [])),
            base=Base(**values["base"]) if values.get("base") else None,
            scale=tuple((low, high) for low, high in values.get("scale", [])),
            contents=values.get("contents", {}),
            preset=values.get("preset", ""),
        )

    def build(self) -> DiffusionModel:
        """Build an untrained model with this card's options."""
        task = resolve_task(self.options.get("task", {}), self.modalities, self.schema.num_classes)
        precision = self.options["trainer"]["precision"]
        return DiffusionModel(
            self.options, len(self.modalities), self.schema.num_classes, precision, task, self.attributes
        )


def read_checkpoint(path: Path, holds: str = "state_dict") -> tuple[Card, dict[str, Any]]:
    """Read the card and all contents of a checkpoint; only tensors and plain values are accepted.

    `holds` is the entry that it must have: "state_dict" for a training, "codec" for its first stage.

    Every byte is checked against the archive's checksums, so that damaged weights are never used.

    Raises:
        UserError: the file is absent, truncated, not medaug's or from a newer version; its card has an option that no
            training can have had; its weights do not match its card; or a weight is NaN or infinite.
    """
    if not os.path.lexists(path):
        raise UserError("no such checkpoint", "run medaug.train first", path=path)
    contents = read_archive(path, "checkpoint", _REMEDY)
    try:
        if not isinstance(contents, dict):
            raise TypeError(type(contents).__name__)
        card, _ = contents["medaug"], contents[holds]
        if card["format"] > FORMAT:
            what = f"format {card['format']} is newer than this medaug reads ({FORMAT})"
            raise UserError(what, "update medaug", path=path)
        made = Card.from_dict(card)
        check_stored(made.options, *_BUILT_FROM)
        if holds == "state_dict":
            _check_weights(path, made, contents)
    except UserError as error:
        if error.path is not None:
            raise
        # The checks of the options, which name only the key.
        raise UserError(error.what, error.remedy or _REMEDY, path=path) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wanted = {
            "state_dict": ("a checkpoint, but not one of medaug's", "give one that medaug.train wrote"),
            "codec": ("not a codec's checkpoint", "give the codec.ckpt that a training with codec=kl left"),
        }
        raise UserError(*wanted[holds], path=path) from error
    if (name := not_finite(contents)) is not None:
        raise UserError(f"{name} holds NaN or infinite values", _REMEDY, path=path)
    return made, contents


def _check_weights(path: Path, card: Card, contents: dict[str, Any]) -> None:
    """Refuse weights that do not match the model on the card, before memory is allocated for either."""
    with torch.device("meta"):
        expected = card.build().state_dict()
    if (problem := misfit(expected, averaged_weights(contents))) is not None:
        raise UserError(problem, _REMEDY, path=path)


def load_model(path: Path, device: torch.device) -> tuple[Card, DiffusionModel]:
    """Load the averaged (EMA) model of a checkpoint, ready to sample.

    Raises:
        UserError: as for `read_checkpoint`.
    """
    card, contents = read_checkpoint(path)
    model = card.build()
    load_weights(model, averaged_weights(contents), path, _REMEDY)
    return card, model.to(device).eval()


def averaged_weights(contents: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged (EMA) state of the `DiffusionModel` in a checkpoint's contents."""
    prefix = "model."
    return {k.removeprefix(prefix): v for k, v in contents["state_dict"].items() if k.startswith(prefix)}


def load_experiment(path: Path, experiment: str, device: torch.device) -> tuple[str, Card, DiffusionModel]:
    """Load the SHA-256, card and averaged model of an experiment's checkpoint.

    Raises:
        UserError: as for `read_checkpoint`; or the checkpoint belongs to another experiment.
    """
    digest = file_sha256(path)
    card, model = load_model(path, device)
    if card.experiment != experiment:
        raise UserError(f"belongs to experiment {card.experiment}, not {experiment}", "train that one first", path=path)
    return digest, card, model


def refuse_changed_scans(card: Card, contents: Contents) -> None:
    """Refuse scans whose files changed since a training read them.

    Args:
        card: card of the trained model; if it recorded no contents, only a warning is logged.
        contents: current contents of the cases.

    Raises:
        UserError: names the case.
    """
    if not card.contents:
        log.warning(
            "the checkpoint of %s recorded no digests of its scans, so whether they changed since cannot be checked",
            card.experiment,
        )
    for name, files in contents.items():
        if name in card.contents and list(card.contents[name]) != list(files):
            raise UserError(
                f"{name}: its files are not those that the generator was trained on", "restore them, or train again"
            )
