"""Radiomic features of a volume, without a network: intensities, gradients, and textures by grey-level co-occurrence.

The choice follows the first-order and co-occurrence features of PyRadiomics (van Griethuysen et al., Cancer Research
77(21), 2017; Haralick et al., IEEE Trans. SMC 3(6), 1973) and their use for the Frechet radiomics distance (Konz et
al., arXiv 2412.01496). They are computed in model space and on the central part of the volume, without a Gaussian or
wavelet filter bank, so distances are not comparable with those of the package frd-score.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kurtosis, skew

from medaug.evaluation.texture import CROP, central_box

LEVELS = 16
"""Grey levels of the co-occurrence matrix, of equal width over the range -1 to 1."""
OFFSETS = [o for o in itertools.product((-1, 0, 1), repeat=3) if o > (0, 0, 0)]
"""The 13 directions to the neighbours of a voxel, of each opposite pair one."""
VERSION = 1
"""Increase this whenever the features change: values of different versions cannot be compared."""


def radiomic_features(volume: NDArray[np.floating], crop: float = CROP) -> NDArray[np.float64]:
    """The features of one modality: 9 of intensities, 2 of gradients and 5 of textures, (16,).

    Args:
        volume: (X, Y, Z) in -1..1.
        crop: share of each side that is used, about the centre.
    """
    centre = np.asarray(volume)[central_box(volume.shape, crop)].astype(np.float64)
    values = centre.ravel()
    spread = values.std() > 1e-6
    first = [
        values.mean(),
        values.std(),
        float(skew(values)) if spread else 0.0,
        float(kurtosis(values)) if spread else 0.0,
        *np.percentile(values, (10, 25, 50, 75, 90)),
    ]
    steps = [np.abs(np.diff(centre, axis=axis)).ravel() for axis in range(3) if centre.shape[axis] > 1]
    gradient = np.concatenate(steps) if steps else np.zeros(1)
    return np.array([*first, gradient.mean(), gradient.std(), *texture_features(cooccurrence(centre))])


def cooccurrence(volume: NDArray[np.floating]) -> NDArray[np.float64]:
    """Symmetric grey-level co-occurrence of neighbouring voxels over 13 directions, (LEVELS, LEVELS), with sum 1."""
    grey = np.clip(((volume + 1) / 2 * LEVELS).astype(np.int64), 0, LEVELS - 1)
    counts = np.zeros(LEVELS * LEVELS)
    for offset in OFFSETS:
        here = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, grey.shape, strict=True))
        there = tuple(slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, grey.shape, strict=True))
        counts += np.bincount((grey[here] * LEVELS + grey[there]).ravel(), minlength=LEVELS * LEVELS)
    matrix = counts.reshape(LEVELS, LEVELS)
    matrix = matrix + matrix.T
    return np.asarray(matrix / max(matrix.sum(), 1.0))


def texture_features(matrix: NDArray[np.float64]) -> list[float]:
    """Contrast, homogeneity (inverse difference moment), energy (ASM), correlation and entropy of a matrix with sum 1.

    Haralick et al. 1973, features 2, 5, 1, 3 and 9. The correlation of a constant volume is 1.
    """
    i, j = np.indices(matrix.shape)
    mean = float((i * matrix).sum())
    variance = float((np.square(i - mean) * matrix).sum())
    covariance = float(((i - mean) * (j - mean) * matrix).sum())
    positive = matrix[matrix > 0]
    return [
        float((np.square(i - j) * matrix).sum()),
        float((matrix / (1 + np.square(i - j))).sum()),
        float(np.square(matrix).sum()),
        covariance / variance if variance > 1e-12 else 1.0,
        float(-(positive * np.log2(positive)).sum()),
    ]
