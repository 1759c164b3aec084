"""Masks of synthetic pairs from those of the training split, as they are or deformed."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from medaug.cohort.schema import foreground
from medaug.data.transforms import random_affine
from medaug.errors import UserError
from medaug.options import MasksOptions

MASK_SOURCES = ("real", "deformed", "generated")
LARGEST_CHANGE = 2.0


def make_mask(label: NDArray[np.uint8], options: MasksOptions, seed: int) -> NDArray[np.uint8]:
    """A mask from a training case's label (X, Y, Z), class indices or IGNORE; a function of its arguments alone.

    Raises:
        UserError: an unknown mask source, or a negative strength.
    """
    if options.source not in MASK_SOURCES:
        raise UserError(f"masks.source={options.source}: not one of {', '.join(MASK_SOURCES)}")
    for name, strength in asdict(options).items():
        if name not in {"source", "checkpoint"} and strength < 0:
            raise UserError(f"masks.{name}={strength:g}: a number from 0 upwards is needed")
    if options.source == "real":
        return np.array(label)
    return deform(label, options, seed)


def deform(label: NDArray[np.uint8], options: MasksOptions, seed: int) -> NDArray[np.uint8]:
    """Rotate, scale and shift about the foreground's centre, then displace smoothly.

    Each class is interpolated linearly by itself and the largest share wins, so that borders stay smooth and no value
    appears that was not there. What is ignored moves along, as a class of its own.
    """
    rng = np.random.default_rng(seed)
    matrix = random_affine(rng, options.rotation, options.scaling)
    shift = rng.normal(0, options.translation, 3)
    noise = rng.standard_normal((3, *label.shape))
    smooth = np.stack([gaussian_filter(field, options.elastic_smoothness, mode="nearest") for field in noise])
    displacement = options.elastic * smooth / smooth.std(axis=(1, 2, 3), keepdims=True)

    grid = np.indices(label.shape).astype(np.float64)
    where = np.argwhere(foreground(label))
    centre = (where.mean(axis=0) if len(where) else (np.array(label.shape) - 1) / 2)[:, None, None, None]
    positions = np.einsum("ij,j...->i...", matrix, grid - centre) + centre + shift[:, None, None, None] + displacement
    classes = np.unique(label)
    # Beyond the grid lies background; "grid-constant" interpolates across its border, where "constant" would cut.
    sampled = partial(map_coordinates, coordinates=positions, order=1, mode="grid-constant")
    shares = np.stack([sampled((label == value).astype(np.float32), cval=value == 0) for value in classes])
    return classes[shares.argmax(axis=0)].astype(np.uint8)


def rejection(mask: NDArray[np.uint8], original: NDArray[np.uint8]) -> str | None:
    """Why a deformed mask is not plausible any more; None where it is.

    A class was lost, changed its volume more than twofold, or was pushed against the border of the grid; what is
    ignored may do all that.
    """
    for value in np.unique(original[foreground(original)]):
        before, after = int((original == value).sum()), int((mask == value).sum())
        if after == 0:
            return f"class {value} vanished"
        if not 1 / LARGEST_CHANGE <= after / before <= LARGEST_CHANGE:
            return f"class {value} changed its volume {after / before:.2f}-fold"
    if touches_border(mask) and not touches_border(original):
        return "the mask was cut by the border"
    return None


def touches_border(mask: NDArray[np.uint8]) -> bool:
    """Whether foreground lies at the border of the grid."""
    return any(bool(np.take(foreground(mask), index, axis).any()) for axis in range(3) for index in (0, -1))
