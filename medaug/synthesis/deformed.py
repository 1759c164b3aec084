"""Mask source "deformed": masks of training scans, deformed at random."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from medaug.cohort.schema import foreground
from medaug.data.transforms import random_affine
from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource, Reason, check_mirror, touches_border

LARGEST_CHANGE = 2.0
"""A class may become at most this many times larger or smaller."""


class DeformedMasks(Masks):
    """The host's mask, deformed by a random affine map and a smooth displacement."""

    remedy = "deform less (masks.scaling, masks.translation, masks.elastic) or use masks=real"

    def __init__(self, options: MasksOptions) -> None:
        self.options = options
        names = ("rotation", "scaling", "translation", "elastic", "elastic_smoothness")
        self.parameters = {name: getattr(options, name) for name in names} | (
            {"mirror": True} if options.mirror else {}
        )

    def make(self, label: Label, seed: int) -> Label:
        """See `deform`."""
        return deform(label, self.options, seed)

    def rejection(self, mask: Label, label: Label) -> Reason | None:
        """See the function `rejection`."""
        return rejection(mask, label)


def _load(options: MasksOptions, model: ImageModel | None) -> DeformedMasks:
    check_mirror(options, model)
    return DeformedMasks(options)


DEFORMED = MaskSource(_load)


def deform(label: Label, options: MasksOptions, seed: int) -> Label:
    """Rotate, scale and shift a mask about the centre of its foreground, then add a smooth displacement.

    Each class is interpolated linearly by itself and the largest share wins, so borders stay smooth and no new value
    appears. Ignored voxels are deformed as a separate class. With `mirror`, half of the masks are mirrored along the
    first axis, about the same centre.
    """
    rng = np.random.default_rng(seed)
    matrix = random_affine(rng, options.rotation, options.scaling)
    shift = rng.normal(0, options.translation, 3)
    noise = rng.standard_normal((3, *label.shape))
    smooth = np.stack([gaussian_filter(field, options.elastic_smoothness, mode="nearest") for field in noise])
    displacement = options.elastic * smooth / smooth.std(axis=(1, 2, 3), keepdims=True)
    if options.mirror and rng.random() < 0.5:
        matrix = np.diag([-1.0, 1.0, 1.0]) @ matrix

    grid = np.indices(label.shape).astype(np.float64)
    where = np.argwhere(foreground(label))
    centre = (where.mean(axis=0) if len(where) else (np.array(label.shape) - 1) / 2)[:, None, None, None]
    positions = np.einsum("ij,j...->i...", matrix, grid - centre) + centre + shift[:, None, None, None] + displacement
    classes = np.unique(label)
    # Outside the grid there is background. "grid-constant" interpolates across the border; "constant" would not.
    sampled = partial(map_coordinates, coordinates=positions, order=1, mode="grid-constant")
    shares = np.stack([sampled((label == value).astype(np.float32), cval=value == 0) for value in classes])
    return classes[shares.argmax(axis=0)].astype(np.uint8)


def rejection(mask: Label, original: Label) -> Reason | None:
    """Why a deformed mask is not plausible; None if it is.

    A mask is rejected if a class vanished, changed its volume more than twofold, or was pushed against the border of
    the grid. None of this applies to ignored voxels.
    """
    for value in np.unique(original[foreground(original)]):
        before, after = int((original == value).sum()), int((mask == value).sum())
        if after == 0:
            return Reason(f"class {value} vanished", "missing")
        if not 1 / LARGEST_CHANGE <= after / before <= LARGEST_CHANGE:
            return Reason(f"class {value} changed its volume {after / before:.2f}-fold", "volume")
    if touches_border(mask) and not touches_border(original):
        return Reason("the mask was cut by the border", "border")
    return None
