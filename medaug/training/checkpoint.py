"""What a checkpoint says about itself, and how it is read without running anybody's code."""

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
from medaug.networks.finite import not_finite
from medaug.training.archive import load_weights, misfit, read_archive
from medaug.training.model import DiffusionModel
from medaug.training.tasks import resolve_task

log = logging.getLogger(__name__)

FORMAT = 2
"""1 held the bare `labels` of a schema."""


_REMEDY = "restore it or train again"


@dataclass(frozen=True)
class Base:
    """The checkpoint that a training began from.

    Attributes:
        experiment: its name.
        sha256: of the file.
        subjects: per split, whom its training and all that came before saw.
        contents: SHA-256 of the files that they read; empty in checkpoints from before.
    """

    experiment: str
    sha256: str
    subjects: dict[str, list[str]]
    contents: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """Everything but the weights: what the model was made of, for, and from.

    Attributes:
        experiment: its name.
        options: plain `data`, `task`, `codec`, `network`, `process` and `trainer` nodes.
        preprocessing: fitted on the training split.
        schema: of the labels.
        modalities: of the images.
        subjects: per split, the subjects that training (`train`) and model selection (`val`) saw.
        phantom: whether the cohort is phantoms.
        attributes: that the model is told, fitted on the training split.
        base: what the training began from (`init_from`); None: from random weights.
        scale: per modality the intensities of -1 and 1 in the scan's units, medians over the training split: the units
            of a modality that a scan never had. Empty in checkpoints from before.
        contents: per case that training and model selection saw, the SHA-256 of its files. Empty in checkpoints from
            before.
        preset: that it was trained with; "" in checkpoints from before.
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
        """Whether the network sees every axial slice by itself."""
        return bool(self.options["network"]["spatial_dims"] == 2)

    @property
    def seen(self) -> Seen:
        """What this training, and every training before it, saw."""
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
        """An untrained model of this make."""
        task = resolve_task(self.options.get("task", {}), self.modalities, self.schema.num_classes)
        precision = self.options["trainer"]["precision"]
        return DiffusionModel(
            self.options, len(self.modalities), self.schema.num_classes, precision, task, self.attributes
        )


def read_checkpoint(path: Path, holds: str = "state_dict") -> tuple[Card, dict[str, Any]]:
    """Card and whole contents of a checkpoint; tensors and plain values only are accepted.

    `holds` is what it must hold: "state_dict" of a training, "codec" of its first stage.

    Every byte of them is held against the check sums of the archive, so that no damage becomes a weight.

    Raises:
        UserError: absent, truncated, not medaug's, from a newer version, with weights of another model than its card
            says, or with a weight that is NaN or infinite.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no checkpoint is there", "run medaug.train first")
    contents = read_archive(path, "checkpoint", _REMEDY)
    try:
        if not isinstance(contents, dict):
            raise TypeError(type(contents).__name__)
        card, _ = contents["medaug"], contents[holds]
        if card["format"] > FORMAT:
            what = f"format {card['format']} is newer than this medaug reads ({FORMAT})"
            raise UserError(what, "update medaug", path=path)
        made = Card.from_dict(card)
        if holds == "state_dict":
            _check_weights(path, made, contents)
    except UserError as error:
        if error.path is not None:
            raise
        # Building the model refuses an option that no training can have had, and names only its key.
        raise UserError(error.what, error.remedy or _REMEDY, path=path) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wanted = {
            "state_dict": "a checkpoint, but not one of medaug's; give one that medaug.train wrote",
            "codec": "not a codec's checkpoint; give the codec.ckpt that a training with codec=kl left",
        }
        raise UserError(f"{path}: {wanted[holds]}") from error
    if (name := not_finite(contents)) is not None:
        raise UserError(f"{path}: {name} holds NaN or infinite values", _REMEDY)
    return made, contents


def _check_weights(path: Path, card: Card, contents: dict[str, Any]) -> None:
    """Refuse weights that are not those of the model on the card, before either takes any memory."""
    with torch.device("meta"):
        expected = card.build().state_dict()
    if (problem := misfit(expected, averaged_weights(contents))) is not None:
        raise UserError(problem, _REMEDY, path=path)


def load_model(path: Path, device: torch.device) -> tuple[Card, DiffusionModel]:
    """The averaged (EMA) model of a checkpoint, ready to sample.

    Raises:
        UserError: as `read_checkpoint`.
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
    """SHA-256, card and averaged model of an experiment's checkpoint.

    Raises:
        UserError: as `read_checkpoint`; or it is another experiment's.
    """
    digest = file_sha256(path)
    card, model = load_model(path, device)
    if card.experiment != experiment:
        raise UserError(f"{path}: of experiment {card.experiment}, not {experiment}", "train that one first")
    return digest, card, model


def refuse_changed_scans(card: Card, contents: Contents) -> None:
    """Refuse scans whose files are not those that a training read under the same case names.

    Args:
        card: of the trained model; a warning says so if it recorded no contents.
        contents: of the cases as they are now.

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
