"""The interface of mask sources for synthetic pairs; the table of sources is in `medaug.synthesis.sources`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import foreground
from medaug.cohort.seen import Seen
from medaug.data.augmentations import mirror_axes
from medaug.data.cases import ModelCase
from medaug.errors import UserError
from medaug.options import MasksOptions, SamplerOptions
from medaug.training.checkpoint import Card

Label = NDArray[np.uint8]
"""(X, Y, Z) class indices or IGNORE, in model space."""


class Reason(str):
    """Why a mask is not plausible, in words.

    Attributes:
        kind: the word under which reasons of the same kind are counted.
    """

    kind: str

    def __new__(cls, text: str, kind: str) -> Reason:
        """Make a reason from its text and its kind."""
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason


@dataclass(frozen=True)
class TrainingMasks:
    """The masks that a source may learn from.

    Attributes:
        labels: masks of the training cases, which are the hosts of the pairs.
        owners: names of the case and the subject of each mask, as {"case", "subject"}.
        cache: folder in which a source stores what it learned; None: it is not stored.
    """

    labels: Sequence[Label]
    owners: Sequence[Mapping[str, str]] = ()
    cache: Path | None = None

    @classmethod
    def of(cls, hosts: Sequence[ModelCase], cache: Path | None = None) -> TrainingMasks:
        """The masks of labelled cases."""
        owners = [{"case": host.case.name, "subject": host.case.subject} for host in hosts]
        return cls([np.asarray(host.label) for host in hosts], owners, cache)

    @property
    def subjects(self) -> set[str]:
        """The subjects of the masks."""
        return {owner["subject"] for owner in self.owners}


class Masks(ABC):
    """Masks for pairs; each mask depends only on a training label and a seed.

    Attributes:
        parameters: parameters of the source that are recorded in a recipe, as JSON values.
        remedy: what a user can do if no mask is plausible.
        subjects: subjects, besides the host's, whose masks go into every mask.
        inside_scan: whether masks that reach beyond their host's scan, into the padding of the grid, are rejected.
        inside_body: whether masks whose new foreground lies in the air around their host's body are rejected.
        seen: the subjects and files that the training of the mask model saw; None: the source uses no model.
        checkpoint: SHA-256 of the mask model's checkpoint; None: the source uses no model.
    """

    parameters: Mapping[str, Any]
    remedy: str
    subjects: frozenset[str] = frozenset()
    inside_scan: bool = False
    inside_body: bool = False
    seen: Seen | None = None
    checkpoint: str | None = None

    @abstractmethod
    def make(self, label: Label, seed: int) -> Label:
        """Make a mask on the grid of a training case's label."""

    def rejection(self, mask: Label, label: Label) -> str | None:
        """Why a mask is not plausible; None if it is."""
        return None

    def chosen(self, index: int, host_of: Callable[[int], int], hosts: int, seed: int) -> tuple[str | None, Masks]:
        """The source of one pair's mask, with its name: for a mixture one of its sources, otherwise (None, self).

        Args:
            index: number of the pair.
            host_of: function of a pair's number that returns the number of its host.
            hosts: number of hosts, which are used equally often.
            seed: root seed of the run.
        """
        return None, self

    def fitted(self, training: TrainingMasks) -> Masks:
        """Return this source after it has learned from the training masks, such as the limits of plausible volumes."""
        return self


@dataclass(frozen=True)
class ImageModel:
    """The model that will generate images for the masks.

    Attributes:
        card: card of its checkpoint.
        cohort: the cohort that it was trained on, with its splits.
        sampler: sampler options.
        device: device to sample on.
    """

    card: Card
    cohort: Manifest
    sampler: SamplerOptions
    device: torch.device


@dataclass(frozen=True)
class MaskSource:
    """An entry of the table of mask sources.

    Attributes:
        load: makes the source from the options and the image model; raises a UserError that names the key if the
            options do not fit. The image model is None if it is still training and its samples are to be scored.
        defaults: values of other keys of `masks` that masks=NAME sets.
    """

    load: Callable[[MasksOptions, ImageModel | None], Masks]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def touches_border(mask: Label) -> bool:
    """Whether foreground touches the border of the grid."""
    return any(bool(np.take(foreground(mask), index, axis).any()) for axis in range(3) for index in (0, -1))


def check_mirror(options: MasksOptions, model: ImageModel | None) -> None:
    """Refuse `masks.mirror` for a cohort whose labels name a side.

    Raises:
        UserError: a label names a side.
    """
    if options.mirror and model is not None and not mirror_axes(model.card.schema):
        raise UserError(
            f"masks.mirror=true: a label of {model.card.experiment} names a side, which mirroring would make wrong",
            "leave it out",
        )
