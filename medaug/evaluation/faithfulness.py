"""Does an image show what its mask says? The Dice of a judge's segmentation of the image against the mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.evaluation.scores import mean_foreground_dice


def agreement(
    judged: Iterable[NDArray[np.uint8]], masks: Iterable[NDArray[np.uint8]], schema: LabelSchema
) -> NDArray[np.float64]:
    """Mean Dice of the structures of each segmentation (X, Y, Z) against its mask; (n,) in 0..1."""
    pairs = zip(judged, masks, strict=True)
    return np.array([mean_foreground_dice(np.asarray(j), np.asarray(m), schema) for j, m in pairs])


def derangement(groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A permutation that gives no item to itself, nor to an item of its own group unless that holds over half of all.

    Shuffled masks tell the chance level of faithfulness; another mask of the same host would not be a stranger's.

    Args:
        groups: the host of each item.
        seed: of the draw.

    Raises:
        ValueError: fewer than two items.
    """
    if len(groups) < 2:
        raise ValueError("a single item cannot be exchanged")
    names = np.asarray(groups)
    # Sorted by group and shifted by the largest group's size, no item meets its own group.
    order = np.array(sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda i: names[i]))
    shift = min(int(np.unique(names, return_counts=True)[1].max()), len(names) - 1)
    permutation = np.empty(len(names), dtype=np.int64)
    permutation[order] = np.roll(order, -shift)
    return permutation
