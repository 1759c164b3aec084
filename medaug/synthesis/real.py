"""Mask source "real": the masks of training scans, unchanged."""

from __future__ import annotations

import numpy as np

from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource


class RealMasks(Masks):
    """The host's own mask."""

    parameters = {}
    remedy = "use masks=deformed"

    def make(self, label: Label, seed: int) -> Label:
        """A copy of the label."""
        return np.array(label)


def _load(options: MasksOptions, model: ImageModel | None) -> RealMasks:
    return RealMasks()


REAL = MaskSource(_load)
