"""Which intensities become -1 and 1: one rule for the model space and for the search for outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

METHODS = ("percentile", "window", "zscore")


@dataclass(frozen=True)
class Intensity:
    """A linear scale per volume and modality, clipped at its ends.

    Attributes:
        method: "percentile" (MR): two percentiles of the volume; "window" (CT): two fixed values in the scan's units;
            "zscore": mean -/+ `zscore_clip` standard deviations of the voxels inside the foreground.
        percentiles: two ascending numbers in 0..100, used by "percentile".
        window: two ascending values (Hounsfield units for CT), used by "window".
        zscore_clip: number of standard deviations, used by "zscore".
    """

    method: str = "percentile"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    zscore_clip: float = 4.0

    def limits(self, volume: NDArray[Any], foreground: NDArray[np.bool_] | None = None) -> tuple[float, float]:
        """Return the values of a volume that become -1 and 1, in its units; the second is larger than the first.

        Args:
            volume: (X, Y, Z), finite values.
            foreground: (X, Y, Z), used by "zscore"; None or empty: every voxel.
        """
        if self.method == "window":
            if self.window is None:
                raise ValueError('method "window" needs the two values of window')
            low, high = self.window
        elif self.method == "zscore":
            values = volume[foreground] if foreground is not None and foreground.any() else volume
            mean, deviation = float(np.mean(values, dtype=np.float64)), float(np.std(values, dtype=np.float64))
            low, high = mean - self.zscore_clip * deviation, mean + self.zscore_clip * deviation
        else:
            low, high = (float(value) for value in np.percentile(volume, self.percentiles))
        # Without contrast any width will do, as long as it does not vanish in rounding next to the value.
        return low, high if high > low else low + 1e-6 * max(1.0, abs(low))


def scale(volume: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Scale to [-1, 1], float32: `low` becomes -1, `high` becomes 1, values outside are clipped."""
    return np.clip(2 * (np.asarray(volume, np.float64) - low) / (high - low) - 1, -1, 1).astype(np.float32)
