"""Memorisation: whether synthetic volumes are near copies of training scans.

The method follows Dar et al., Unconditional Latent Diffusion Models Memorize Patient Imaging Data (arXiv 2402.01054): a
volume is a near copy if it is more similar to the nearest training scan than 95% of the real scans of held-out subjects
are. The paper correlates learned features. Here coarse versions of the volumes are correlated instead. This needs no
network, and finds copies that differ by flips, brightness, contrast, noise and small shifts. It does not find a copied
detail in different surroundings.
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
"""Maximum number of voxels of a coarse volume along each axis: enough to tell two people apart, and few enough that a
shift of the scan by one voxel does not matter."""

SHARE = 0.05
"""Share of held-out real scans that are above the threshold."""

ALARM = 0.01
"""Warn if `near_copies_p` is below this."""


class CoarseVolumes:
    """The training scans as coarse volumes. Their mean is subtracted, because it says nothing about a single scan.

    Args:
        training: volumes (M, X, Y, Z) in model space, at least two; iterated once.

    Attributes:
        units: one row of length 1 per training scan; the dot product of two rows is the correlation of the scans.

    Raises:
        ValueError: there are fewer than two training scans.
    """

    def __init__(self, training: Iterable[NDArray[np.floating]]) -> None:
        volumes = np.stack([_coarse(volume) for volume in training])
        if len(volumes) < 2:
            raise ValueError("at least two training scans are needed")
        self._mean = volumes.mean(0)
        self.units = self._unit(volumes)

    def unit(self, volume: NDArray[np.floating]) -> NDArray[np.float64]:
        """The row for another volume (M, X, Y, Z) on the training grid, as in `units`."""
        return self._unit(_coarse(volume)[None])[0]

    def _unit(self, coarse: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = (coarse - self._mean).reshape(len(coarse), -1)
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


class TrainingNeighbours(CoarseVolumes):
    """Finds the training scan that is nearest to a volume.

    Similarity is the correlation, in -1..1, of coarse volumes after the mean of the training scans is subtracted. The
    largest similarity over the eight flips of a volume is used.
    """

    def nearest(self, volume: NDArray[np.floating], shift: int = 0) -> tuple[float, int]:
        """Similarity to the nearest training scan, and its index.

        Args:
            volume: (M, X, Y, Z) on the training grid.
            shift: also compare the volume after shifts by this many voxels along each axis, in both directions, unless
                the blocks are so coarse that a shift makes no difference.
        """
        steps = (-shift, 0, shift) if shift > 0 and _block(volume) < 4 * shift else (0,)
        moved = (np.roll(volume, step, (1, 2, 3)) for step in itertools.product(steps, repeat=3))
        axes = [flips for n in range(4) for flips in itertools.combinations((1, 2, 3), n)]
        variants = np.stack([np.flip(coarse, flips) for coarse in map(_coarse, moved) for flips in axes])
        similarity = self._unit(variants) @ self.units.T
        index = int(similarity.max(0).argmax())
        return float(similarity[:, index].max()), index


def near_copy_threshold(held_out: Sequence[float]) -> float:
    """The similarity above which a volume is a near copy: the 95th percentile over held-out real scans."""
    return float(np.quantile(held_out, 1 - SHARE))


def expected_near_copies(held_out: int) -> float:
    """Expected share of new real scans above the threshold of `held_out` scans: 1/2 for one scan, 5% for very many."""
    return (SHARE * held_out + 1 - SHARE) / (held_out + 1)


def near_copies_p(flagged: int, num: int, held_out: int) -> float:
    """Probability that at least `flagged` of `num` new real scans are near copies.

    The number of new values above the j-th smallest of n held-out values is beta-binomial with parameters n + 1 - j
    and j, whatever the distribution of the values, because only the order of exchangeable values matters. The 95th
    percentile is at j = 0.95 (n - 1) + 1. The probability therefore allows for the uncertainty of a threshold that was
    computed from few held-out scans.

    Args:
        flagged: number of samples above `near_copy_threshold`.
        num: number of samples.
        held_out: number of real scans that the threshold was computed from.
    """
    j = (1 - SHARE) * (held_out - 1) + 1
    return float(betabinom.sf(flagged - 1, num, held_out + 1 - j, j))


def _coarse(volume: NDArray[np.floating]) -> NDArray[np.float64]:
    """The centre of a volume (M, X, Y, Z), averaged over blocks; each modality gets mean 0 and standard deviation 1."""
    centre = torch.from_numpy(volume[:, *central_box(volume.shape[1:], CROP)].astype(np.float64))
    block = _block(volume)
    x, y, z = (math.ceil(side / block) for side in centre.shape[1:])
    # Adaptive pooling places the blocks symmetrically, so that a flipped volume has the same blocks.
    blocks = adaptive_avg_pool3d(centre, (x, y, z)).numpy()
    deviation = blocks - blocks.mean((1, 2, 3), keepdims=True)
    return np.asarray(deviation / np.maximum(deviation.std((1, 2, 3), keepdims=True), 1e-12))


def _block(volume: NDArray[np.floating]) -> int:
    """Number of voxels along each side of a block that becomes one voxel of a coarse volume."""
    sides = [box.stop - box.start for box in central_box(volume.shape[1:], CROP)]
    return math.ceil(max(sides) / MOST_VOXELS)
