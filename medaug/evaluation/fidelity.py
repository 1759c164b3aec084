"""Fidelity: how closely synthetic volumes resemble real ones, by their power spectra and by a distance between sets.

Everything is measured in model space, where all scans of a cohort have the same grid and intensity scale. Differences
are compared with those between two halves of the real subjects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medaug.evaluation.texture import CROP, central_box, mean_absolute_gradient

FLOOR = 1e-12
"""Smaller powers are replaced by this one, about that of the rounding errors of float32 volumes in [-1, 1]."""

LEAST_SIDE = 4
"""Minimum number of voxels along each axis, after the crop, for a spectrum."""

NUM_SPLITS = 200


def octave_spectrum(volume: NDArray[np.floating], crop: float = CROP) -> NDArray[np.float64]:
    """Mean power per octave band of spatial frequency, finest band first; (bands,).

    Band k contains the frequencies f = (fx^2 + fy^2 + fz^2)^(1/2) in [2^-(k+2), 2^-(k+1)) cycles per voxel: 1/4 to 1/2,
    1/8 to 1/4, and so on, down to the band that contains 1 / shortest side. So that no power is lost, the finest band
    also contains the corners of the cube of frequencies (f up to 0.87), and the coarsest band everything below it. The
    unit is such that white noise of variance v has power v in each band.

    The weighted mean is subtracted, and the volume is multiplied by a Hann window along each axis, normalised by the
    window's mean square (Welch, IEEE Trans. Audio Electroacoust. 15(2), 1967). Without a window the jump between
    opposite faces would add power of the order 1/f^2 to every band and hide missing fine structure: a blur of one voxel
    removes 16 dB from the finest band of hippocampus scans, but only 6 dB would be visible.

    Args:
        volume: (X, Y, Z), one modality.
        crop: share of each side that is used, about the centre, in (0, 1].

    Raises:
        ValueError: there are not three axes, or fewer than `LEAST_SIDE` voxels along one of them after the crop.
    """
    centre = volume[central_box(volume.shape, crop)].astype(np.float64)
    sides = centre.shape
    if len(sides) != 3 or min(sides) < LEAST_SIDE:
        raise ValueError(f"three axes of at least {LEAST_SIDE} voxels are needed, not {sides}")
    # Use the periodic window (numpy's is symmetric), so that a cosine leaks only into the neighbouring frequencies.
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
    """Distance of a volume's spectrum from the mean of real ones: RMS over the bands, in their standard deviations.

    For real volumes of any cohort the mean square of this distance is about 1; it is 0 for the mean spectrum.

    Args:
        volume: (X, Y, Z).
        reference_log_mean: mean of `log_spectrum` over real volumes of the same modality and grid, (bands,).
        reference_log_std: standard deviation of `log_spectrum` over the same volumes, (bands,).
        crop: the crop that the reference was computed with.
    """
    deviation = (log_spectrum(volume, crop) - reference_log_mean) / reference_log_std
    return float(np.sqrt(np.mean(deviation**2)))


def spectral_discrepancy(
    log_spectra: NDArray[np.float64],
    reference_log_mean: NDArray[np.float64],
    reference_log_std: NDArray[np.float64],
) -> float:
    """Distance between the spectra of a set of volumes and those of real ones, in mean and spread: RMS over the bands.

    Per band it is the 2-Wasserstein distance between normal distributions, ((m - m_r)^2 + (s - s_r)^2)^(1/2) (Dowson &
    Landau, Journal of Multivariate Analysis 12(3), 1982), in standard deviations s_r of real volumes; 0 for equal sets.
    Unlike the mean of `spectral_distance`, it also penalises too little variety, which cannot make up for a wrong mean.

    Args:
        log_spectra: `log_spectrum` of each volume, (n, bands).
        reference_log_mean, reference_log_std: as for `spectral_distance`.
    """
    mean = (log_spectra.mean(0) - reference_log_mean) / reference_log_std
    std = log_spectra.std(0) / reference_log_std - 1
    return float(np.sqrt(np.mean(mean**2 + std**2)))


def texture(volume: NDArray[np.floating], crop: float = CROP) -> NDArray[np.float64]:
    """The texture measures of a volume (1 + bands,): mean absolute gradient, then `log_spectrum`."""
    return np.array([mean_absolute_gradient(volume), *log_spectrum(volume, crop)])


def differences_of_halves(
    values: NDArray[np.float64], subjects: Sequence[str], seed: int, num_splits: int = NUM_SPLITS
) -> NDArray[np.float64]:
    """Absolute differences between the means of two random halves of a cohort, (num_splits, columns).

    Args:
        values: one row per volume, (n, columns).
        subjects: subject of each volume; volumes of a subject stay together. If the number of subjects is odd, each
            split leaves one out.
        seed: seed of the splits.
        num_splits: number of random splits.

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
    """The difference between synthetic and real volumes in one measure, and between two halves of the real volumes.

    Attributes:
        name: name of the measure.
        real, synthetic: means over the volumes.
        halves_mean, halves_std: mean and standard deviation, over random splits, of the absolute difference between two
            halves of the real volumes.
    """

    name: str
    real: float
    synthetic: float
    halves_mean: float
    halves_std: float

    @property
    def ratio(self) -> float:
        """|synthetic - real| divided by `halves_mean`."""
        return abs(self.synthetic - self.real) / self.halves_mean

    @property
    def passed(self) -> bool:
        """Whether the difference is at most twice the mean difference between two halves."""
        return self.ratio <= 2


def deviations(
    synthetic: NDArray[np.float64],
    real: NDArray[np.float64],
    real_subjects: Sequence[str],
    names: Sequence[str],
    seed: int,
    num_splits: int = NUM_SPLITS,
) -> list[Deviation]:
    """Compare tables of measures, such as `texture` of one volume per row, column by column.

    Args:
        synthetic: (m, columns).
        real: (n, columns).
        real_subjects: subject of each row of `real`.
        names: names of the columns.
        seed, num_splits: as for `differences_of_halves`.
    """
    halves = differences_of_halves(real, real_subjects, seed, num_splits)
    columns = zip(names, real.mean(0), synthetic.mean(0), halves.mean(0), halves.std(0), strict=True)
    return [Deviation(name, *map(float, numbers)) for name, *numbers in columns]


def kernel_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """KID: the unbiased squared maximum mean discrepancy of features with the kernel k(a, b) = (a.b / d + 1)^3.

    Binkowski et al., Demystifying MMD GANs (ICLR 2018), equations 3 and 4: the mean of k over pairs within x, plus the
    mean over pairs within y, minus twice the mean over pairs of x and y. If both sets come from one distribution, the
    expectation is 0 at any sample size, so the value may be negative.

    Args:
        x: features (m, d).
        y: features (n, d) of the same network, on the same scale; the kernel does not rescale them.

    Raises:
        ValueError: one of them has fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("at least two volumes are needed in each set")
    return _discrepancy(_kernel(x, x), _kernel(y, y), _kernel(x, y))


def _kernel(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def _discrepancy(xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return float(sum(within) - 2 * xy.mean())
