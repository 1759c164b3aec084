"""Mask source "mixed": each pair's mask comes from one of several sources, chosen by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medaug.cohort.seen import Seen
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource, TrainingMasks
from medaug.tables import parse_parameters

MIXED_NAME, REAL_NAME = "mixed", "real"


@dataclass
class MixedMasks(Masks):
    """Several sources with weights.

    Attributes:
        members: the sources by name.
        weights: weights of the sources by name, none negative.
        most: how often the source "real" may use the mask of a host; None: any number of times.
    """

    members: Mapping[str, Masks]
    weights: Mapping[str, float]
    most: int | None = None
    _names: list[str] = field(default_factory=list, init=False)
    _unchanged: Counter[int] = field(default_factory=Counter, init=False)

    parameters = {}
    remedy = "leave the source out of masks.mix"

    @property
    def seen(self) -> Seen | None:  # type: ignore[override]
        """What the training of the mask generator saw, if there is one among the sources."""
        return next((masks.seen for masks in self.members.values() if masks.seen is not None), None)

    @property
    def checkpoint(self) -> str | None:  # type: ignore[override]
        """SHA-256 of the mask generator's checkpoint, if there is one among the sources."""
        return next((masks.checkpoint for masks in self.members.values() if masks.checkpoint is not None), None)

    def fitted(self, training: TrainingMasks) -> MixedMasks:
        """This mixture with every source fitted."""
        return replace(self, members={name: masks.fitted(training) for name, masks in self.members.items()})

    def chosen(self, index: int, host_of: Callable[[int], int], hosts: int, seed: int) -> tuple[str, Masks]:
        """The source of a pair's mask, with its name: a function of the seed and the pairs before.

        If the source "real" has used the host's mask `most` times, another source is chosen.

        Raises:
            UserError: there is no other source.
        """
        for position in range(len(self._names), index + 1):
            self._names.append(self._choose(position, host_of(position), seed))
        name = self._names[index]
        return name, self.members[name]

    def _choose(self, index: int, host: int, seed: int) -> str:
        names = list(self.members)
        if self.most is not None and self._unchanged[host] >= self.most:
            names = [name for name in names if name != REAL_NAME]
        if not names:
            raise UserError(
                f"pair {index}: the mask of its host has been used {self.most} times (masks.max_per_mask)",
                "make fewer pairs, or add a source to masks.mix",
            )
        weights = np.cumsum([self.weights[name] for name in names])
        share = np.random.default_rng(named_seed(seed, "source", index)).random() * weights[-1]
        name = names[int(np.searchsorted(weights, share, side="right"))]
        self._unchanged[host] += name == REAL_NAME
        return name

    def make(self, label: Label, seed: int) -> Label:
        """Not used: masks are made by the source that `chosen` returns."""
        raise TypeError("a mixture makes no masks itself")


def _load(options: MasksOptions, model: ImageModel | None) -> MixedMasks:
    from medaug.synthesis.sources import MASK_SOURCES

    weights = _weights(options.mix)
    members = {}
    for name in weights:
        if name == MIXED_NAME:
            raise UserError("masks.mix: mixed is itself a mixture", "name other sources")
        members[name] = MASK_SOURCES[name].load(options, model)
    return MixedMasks(members, weights, options.max_per_mask)


def _weights(words: Sequence[str]) -> dict[str, float]:
    example = "write each source once with its weight, as in masks.mix=[real:0.2,deformed:0.8]"
    if not words:
        raise UserError("masks=mixed: needs masks.mix", example)
    try:
        weights = parse_parameters(words)
    except ValueError:
        raise UserError(f"masks.mix=[{','.join(words)}]: not sources with weights", example) from None
    for name, weight in weights.items():
        if isinstance(weight, bool | str) or not 0 < weight < float("inf"):
            raise UserError(f"masks.mix: the weight of {name} is {weight}, but must be a number above 0", example)
    return weights


MIXED = MaskSource(_load)
