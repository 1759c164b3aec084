"""How similar a generated image is to the real one: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

DATA_RANGE = 2.0
"""The range of intensities; images are in [-1, 1]."""


def psnr(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio 10 log10(range^2 / MSE) of images in [-1, 1], in dB; 106 for equal images."""
    error = float(np.mean(np.square(np.asarray(image, np.float64) - truth)))
    return float(10 * np.log10(DATA_RANGE**2 / max(error, 1e-10)))


def ssim(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Mean structural similarity of volumes (X, Y, Z) in [-1, 1] (Wang et al. 2004), in windows of 7 x 7 x 7 voxels.

    If a side of the volume is shorter than 7, the side of the window is the largest odd number that fits.
    """
    side = min(7, *((n - 1) // 2 * 2 + 1 for n in truth.shape))
    return float(structural_similarity(image, truth, win_size=side, data_range=DATA_RANGE))
