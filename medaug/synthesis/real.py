"""Mask source "real": the masks of training scans, unchanged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medaug.errors import UserError
from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource


class RealMasks(Masks):
    """The host's own mask.

    Attributes:
        most: how often a mask may be used; None: any number of times.
    """

    parameters = {}
    remedy = "use masks=deformed"

    def __init__(self, most: int | None = None) -> None:
        self.most = most

    def chosen(self, index: int, host_of: Callable[[int], int], hosts: int, seed: int) -> tuple[str | None, Masks]:
        """This source.

        Raises:
            UserError: the mask has been used `most` times.
        """
        if self.most is not None and index >= self.most * hosts:
            raise UserError(
                f"masks.max_per_mask={self.most}: {hosts} masks give at most {self.most * hosts} pairs",
                "make fewer pairs, or use masks=deformed",
            )
        return None, self

    def make(self, label: Label, seed: int) -> Label:
        """A copy of the label."""
        return np.array(label)


def _load(options: MasksOptions, model: ImageModel | None) -> RealMasks:
    return RealMasks(options.max_per_mask)


REAL = MaskSource(_load)
