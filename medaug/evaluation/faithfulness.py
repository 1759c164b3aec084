"""Faithfulness: the Dice of the judge's segmentation of an image against the mask that the image was generated from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema
from medaug.evaluation.scores import mean_foreground_dice


def agreement(
    segmentations: Iterable[NDArray[np.uint8]], masks: Iterable[NDArray[np.uint8]], schema: LabelSchema
) -> NDArray[np.float64]:
    """Mean Dice over the structures for each segmentation (X, Y, Z) and its mask: (n,) in 0..1."""
    pairs = zip(segmentations, masks, strict=True)
    return np.array([mean_foreground_dice(np.asarray(s), np.asarray(m), schema) for s, m in pairs])


def derangement(groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A random permutation that maps no item to itself, and no item to its own group unless one has more than half.

    The chance level of faithfulness is measured with masks shuffled in this way. Groups are hosts, because two masks
    of the same host are too similar.

    Args:
        groups: group of each item.
        seed: seed of the permutation.

    Raises:
        ValueError: fewer than two items.
    """
    if len(groups) < 2:
        raise ValueError("a single item cannot be permuted")
    names = np.asarray(groups)
    # If items are sorted by group, a shift by the size of the largest group maps each to another group.
    order = np.array(sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda i: names[i]))
    shift = min(int(np.unique(names, return_counts=True)[1].max()), len(names) - 1)
    permutation = np.empty(len(names), dtype=np.int64)
    permutation[order] = np.roll(order, -shift)
    return permutation
