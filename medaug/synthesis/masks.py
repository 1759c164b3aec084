"""The interface of mask sources for synthetic pairs; the table of sources is in `medaug.synthesis.sources`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import foreground
from medaug.cohort.seen import Seen
from medaug.options import MasksOptions, SamplerOptions
from medaug.training.checkpoint import Card

Label = NDArray[np.uint8]
"""(X, Y, Z) class indices or IGNORE, in model space."""


class Masks(ABC):
    """Masks for pairs; each mask depends only on a training label and a seed.

    Attributes:
        parameters: parameters of the source that a recipe records, JSON values only.
        remedy: what a user can do if no mask is plausible.
        seen: what the training of the mask model saw; None: the source uses no model.
        checkpoint: SHA-256 of the mask model's checkpoint; None: the source uses no model.
    """

    parameters: Mapping[str, Any]
    remedy: str
    seen: Seen | None = None
    checkpoint: str | None = None

    @abstractmethod
    def make(self, label: Label, seed: int) -> Label:
        """Make a mask on the grid of a training case's label."""

    def rejection(self, mask: Label, label: Label) -> str | None:
        """Why a mask is not plausible; None if it is."""
        return None

    def fitted(self, labels: Sequence[Label]) -> Masks:
        """Return this source with its plausibility limits fitted to the training labels."""
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
        load: makes the masks from the options; raises a UserError that names the key if the options do not fit. The
            image model is None while it trains, when the masks are for scoring its samples.
        defaults: what other keys of `masks` are if the source is chosen by masks=NAME.
    """

    load: Callable[[MasksOptions, ImageModel | None], Masks]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def touches_border(mask: Label) -> bool:
    """Whether foreground touches the border of the grid."""
    return any(bool(np.take(foreground(mask), index, axis).any()) for axis in range(3) for index in (0, -1))
