"""Are synthetic volumes copies of training scans? Similarity to the nearest one, judged by what new patients show.

After Dar et al., Unconditional Latent Diffusion Models Memorize Patient Imaging Data (arXiv 2402.01054): a volume is
called a near copy where its similarity to its nearest training scan is above the 95th percentile of that of real scans
of subjects that were held out. They correlate learned features; here the coarse volumes themselves are correlated,
which needs no further network, and finds copies that differ by flips, brightness, contrast, noise and small shifts. It
does not find a copied detail in a new surrounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import betabinom
from torch.nn.functional import adaptive_avg_pool3d

from medaug.evaluation.texture import CROP, central_box

MOST_VOXELS = 20
"""Of a coarse volume along each axis: enough to tell two people, few enough that a shift by a voxel does not matter."""

SHARE = 0.05
"""Of held-out real scans, that are above the threshold."""

ALARM = 0.01
"""Least `near_copies_p` that is put down to chance."""


class TrainingNeighbours:
    """The training scans, and who among them is nearest to a volume.

    Similarity is the correlation, in -1..1, of coarse volumes less the mean of the training scans: what all scans of a
    cohort share says nothing. Of the eight flips of a volume the most similar counts.

    Args:
        training: volumes (M, X, Y, Z) in model space, at least two; read one by one.

    Raises:
        ValueError: fewer than two.
    """

    def __init__(self, training: Iterable[NDArray[np.floating]]) -> None:
        volumes = np.stack([_coarse(volume) for volume in training])
        if len(volumes) < 2:
            raise ValueError("at least two training scans are needed")
        self._mean = volumes.mean(0)
        self._units = self._unit(volumes)

    def nearest(self, volume: NDArray[np.floating]) -> tuple[float, int]:
        """Similarity to the nearest training scan, and which one it is; volume (M, X, Y, Z) on the training grid."""
        coarse = _coarse(volume)
        axes = [flips for n in range(4) for flips in itertools.combinations((1, 2, 3), n)]
        similarity = self._unit(np.stack([np.flip(coarse, flips) for flips in axes])) @ self._units.T
        index = int(similarity.max(0).argmax())
        return float(similarity[:, index].max()), index

    def _unit(self, coarse: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = (coarse - self._mean).reshape(len(coarse), -1)
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def near_copy_threshold(held_out: Sequence[float]) -> float:
    """Similarity above which a volume is a near copy: the 95th percentile of that of held-out real scans."""
    return float(np.quantile(held_out, 1 - SHARE))


def expected_near_copies(held_out: int) -> float:
    """Share of further real scans expected above the threshold of `held_out` scans: 1/2 for one, 5% for very many."""
    return (SHARE * held_out + 1 - SHARE) / (held_out + 1)


def near_copies_p(flagged: int, num: int, held_out: int) -> float:
    """Probability that so many or more of `num` further real scans are near copies.

    Their number above the j-th smallest of n held-out values is beta-binomial with n + 1 - j and j, whatever the
    distribution, for the order of exchangeable values is all that counts; the percentile is at j = 0.95 (n - 1) + 1.
    So few held-out scans raise no alarm lightly.

    Args:
        flagged: samples above `near_copy_threshold`.
        num: samples.
        held_out: real scans that gave the threshold.
    """
    j = (1 - SHARE) * (held_out - 1) + 1
    return float(betabinom.sf(flagged - 1, num, held_out + 1 - j, j))


def _coarse(volume: NDArray[np.floating]) -> NDArray[np.float64]:
    """The centre of (M, X, Y, Z) in blocks of voxels, each modality with mean 0 and standard deviation 1."""
    centre = torch.from_numpy(volume[:, *central_box(volume.shape[1:], CROP)].astype(np.float64))
    sides = centre.shape[1:]
    block = math.ceil(max(sides) / MOST_VOXELS)
    x, y, z = (math.ceil(side / block) for side in sides)
    # These blocks lie alike from either end, so that a flipped volume has the same ones.
    blocks = adaptive_avg_pool3d(centre, (x, y, z)).numpy()
    deviation = blocks - blocks.mean((1, 2, 3), keepdims=True)
    return np.asarray(deviation / np.maximum(deviation.std((1, 2, 3), keepdims=True), 1e-12))
