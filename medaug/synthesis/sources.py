"""The table of mask sources: where the masks of synthetic pairs come from."""

from __future__ import annotations

from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Masks, MaskSource
from medaug.tables import Table

MASK_SOURCES: Table[MaskSource] = Table("mask_sources", "mask source", MaskSource, key="masks.source")


def load_masks(options: MasksOptions, model: ImageModel | None = None) -> Masks:
    """Load the mask source that the options name.

    Args:
        options: the `masks` options.
        model: the model that generates the images; None: it is still training, and its samples are scored.

    Raises:
        UserError: names the key, what is wrong, and the remedy.
    """
    return MASK_SOURCES[options.source].load(options, model)
