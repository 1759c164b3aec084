"""Do synthetic volumes look like real ones? Power per octave of spatial frequency, and a distance between two sets.

Everything is measured in model space, where all scans of a cohort share grid and intensity scale. The yardstick is the
cohort itself: by how much two halves of its subjects differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.evaluation.texture import CROP, central_box, mean_absolute_gradient

FLOOR = 1e-12
"""Power below which a band counts as empty: float32 volumes in [-1, 1] are rounded to about that."""

LEAST_SIDE = 4
"""Voxels along each axis, after the crop, that a spectrum needs."""

NUM_SPLITS = 200


def octave_spectrum(volume: NDArray[np.floating], crop: float = CROP) -> NDArray[np.float64]:
    """Mean power per octave band of spatial frequency, finest band first; (bands,).

    Band k holds the frequencies f = (fx^2 + fy^2 + fz^2)^(1/2) in [2^-(k+2), 2^-(k+1)) cycles per voxel: 1/4 to 1/2,
    1/8 to 1/4, and so on. So that no power is lost, the finest band reaches into the corners of the cube of frequencies
    (f up to 0.87), and the coarsest, that of 1 / shortest side, holds all below it. The unit is such that white noise
    of variance v has v in each band.

    The volume is multiplied by a Hann window along each axis, normalised by its mean square (Welch, IEEE Trans. Audio
    Electroacoust. 15(2), 1967); the mean under the window is removed first. Without a window the jump between opposite
    faces puts power of the order 1/f^2 into every band, which hides that fine structure is missing: a blur of one
    voxel takes 16 dB from the finest band of hippocampus scans, of which 6 would be seen.

    Args:
        volume: (X, Y, Z), one modality.
        crop: share of each side, about the centre, in (0, 1].

    Raises:
        ValueError: not three axes, or fewer than `LEAST_SIDE` voxels along one after the crop.
    """
    centre = volume[central_box(volume.shape, crop)].astype(np.float64)
    sides = centre.shape
    if len(sides) != 3 or min(sides) < LEAST_SIDE:
        raise ValueError(f"three axes of at least {LEAST_SIDE} voxels are needed, not {sides}")
    # The periodic window (numpy's is symmetric): a cosine then leaks to its neighbours only.
    x, y, z = (np.hanning(side + 1)[:-1] for side in sides)
    window = x[:, None, None] * y[:, None] * z
    power = np.abs(np.fft.fftn(window * (centre - np.average(centre, weights=window)))) ** 2 / (window**2).sum()
    fx, fy, fz = (np.fft.fftfreq(side) for side in sides)
    frequency = np.sqrt(fx[:, None, None] ** 2 + fy[:, None] ** 2 + fz**2).ravel()[1:]
    coarsest = math.ceil(math.log2(min(sides))) - 2
    band = np.clip(np.ceil(-np.log2(frequency)).astype(int) - 2, 0, coarsest)
    return np.bincount(band, power.ravel()[1:]) / np.bincount(band)


def log_spectrum(volume: NDArray[np.floating], crop: float = CROP) -> NDArray[np.float64]:
    """`octave_spectrum` in decibels, (bands,)."""
    return 10 * np.log10(np.maximum(octave_spectrum(volume, crop), FLOOR))


def spectral_distance(
    volume: NDArray[np.floating],
    reference_log_mean: NDArray[np.float64],
    reference_log_std: NDArray[np.float64],
    crop: float = CROP,
) -> float:
    """How far a volume's spectrum is from the real ones': RMS over the bands, in standard deviations of real volumes.

    Real volumes have a mean square of about 1, whatever the cohort; 0 would be the average itself.

    Args:
        volume: (X, Y, Z).
        reference_log_mean: mean over real volumes of `log_spectrum`, (bands,), of the same modality and grid.
        reference_log_std: their standard deviation.
        crop: as in the reference.
    """
    deviation = (log_spectrum(volume, crop) - reference_log_mean) / reference_log_std
    return float(np.sqrt(np.mean(deviation**2)))


def spectral_discrepancy(
    log_spectra: NDArray[np.float64],
    reference_log_mean: NDArray[np.float64],
    reference_log_std: NDArray[np.float64],
) -> float:
    """How far a set of volumes is from the real ones in mean and spread of their spectra: RMS over the bands.

    Per band the 2-Wasserstein distance between normal distributions, ((m - m_r)^2 + (s - s_r)^2)^(1/2) (Dowson &
    Landau, Journal of Multivariate Analysis 12(3), 1982), in standard deviations s_r of real volumes; 0 for equal sets.
    Unlike the mean of `spectral_distance`, it does not excuse a set that is off by its being less varied.

    Args:
        log_spectra: of the volumes, (n, bands) by `log_spectrum`.
        reference_log_mean, reference_log_std: as `spectral_distance`.
    """
    mean = (log_spectra.mean(0) - reference_log_mean) / reference_log_std
    std = log_spectra.std(0) / reference_log_std - 1
    return float(np.sqrt(np.mean(mean**2 + std**2)))


def texture(volume: NDArray[np.floating], crop: float = CROP) -> NDArray[np.float64]:
    """Mean absolute gradient, then `log_spectrum`: one row (1 + bands,) of a table of volumes."""
    return np.array([mean_absolute_gradient(volume), *log_spectrum(volume, crop)])


def texture_names(bands: int) -> list[str]:
    """What the columns of `texture` are called."""
    octaves = [f"{1 / 2 ** (k + 2):g}-{1 / 2 ** (k + 1):g} cycles/voxel (dB)" for k in range(bands)]
    return ["mean absolute gradient", *octaves]


def differences_of_halves(
    values: NDArray[np.float64], subjects: Sequence[str], seed: int, num_splits: int = NUM_SPLITS
) -> NDArray[np.float64]:
    """By how much two random halves of a cohort differ: |mean of one - mean of the other|, (num_splits, columns).

    Args:
        values: one row per volume, (n, columns).
        subjects: of the volumes; a subject's volumes stay together. Of an odd number one subject is left out.
        seed: of the splits.
        num_splits: how many.

    Raises:
        ValueError: fewer than two subjects.
    """
    names, member = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    half = len(names) // 2
    if half < 1:
        raise ValueError("a single subject has no halves")
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_splits):
        place = rng.permutation(len(names))[member]
        first, second = place < half, (place >= half) & (place < 2 * half)
        rows.append(np.abs(values[first].mean(0) - values[second].mean(0)))
    return np.array(rows)


@dataclass(frozen=True)
class Deviation:
    """By how much synthetic volumes differ from real ones in one measure, beside what halves of the real ones do.

    Attributes:
        name: of the measure.
        real, synthetic: means over the volumes.
        halves_mean, halves_std: over random splits, of the absolute difference between two halves of the real volumes.
    """

    name: str
    real: float
    synthetic: float
    halves_mean: float
    halves_std: float

    @property
    def ratio(self) -> float:
        """|synthetic - real| over `halves_mean`."""
        return abs(self.synthetic - self.real) / self.halves_mean

    @property
    def passed(self) -> bool:
        """Whether they differ by no more than twice what two halves do."""
        return self.ratio <= 2


def deviations(
    synthetic: NDArray[np.float64],
    real: NDArray[np.float64],
    real_subjects: Sequence[str],
    names: Sequence[str],
    seed: int,
    num_splits: int = NUM_SPLITS,
) -> list[Deviation]:
    """Compare tables of measures (a row per volume, as `texture` gives them), column by column.

    Args:
        synthetic: (m, columns).
        real: (n, columns).
        real_subjects: the subject of each row of `real`.
        names: of the columns.
        seed, num_splits: of the halves.
    """
    halves = differences_of_halves(real, real_subjects, seed, num_splits)
    columns = zip(names, real.mean(0), synthetic.mean(0), halves.mean(0), halves.std(0), strict=True)
    return [Deviation(name, *map(float, numbers)) for name, *numbers in columns]


def kernel_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """KID: squared maximum mean discrepancy, unbiased, of features under k(a, b) = (a.b / d + 1)^3.

    Binkowski et al., Demystifying MMD GANs (ICLR 2018), equations 3 and 4:
    mean of k over pairs within x, plus over pairs within y, minus twice over pairs between them. Its expectation is 0
    where both are drawn from one distribution, at any sample size, so it may be negative.

    Args:
        x: features (m, d).
        y: features (n, d) from the same network, on the same scale: the kernel knows no other.

    Raises:
        ValueError: fewer than two rows in either.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("at least two volumes are needed in each set")
    return _discrepancy(_kernel(x, x), _kernel(y, y), _kernel(x, y))


def _kernel(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def _discrepancy(xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return float(sum(within) - 2 * xy.mean())
