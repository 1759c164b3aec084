"""Volume, shape and position of the structures of a label map, to compare sets of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.schema import LabelSchema

KINDS = ("volume", "shape", "position")


def mask_features(label: NDArray[np.uint8], schema: LabelSchema, spacing: Sequence[float]) -> dict[str, list[float]]:
    """Features of every structure of a label map (X, Y, Z) of class indices, by kind.

    Args:
        label: class indices.
        schema: label schema.
        spacing: voxel size in mm.

    Returns:
        - "volume": the cube root of the volume in mm, 0 for an absent structure;
        - "shape": elongation, the square root of the ratio of the largest to the smallest principal variance, and
          compactness, the face area of the voxels divided by that of a cube of the same volume;
        - "position": the centroid in mm, three numbers.

        Shape and position of an absent structure are NaN.
    """
    sides = np.asarray(spacing, float)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for mask in schema.structure_masks(label).values():
        size = float(np.cbrt(np.count_nonzero(mask) * sides.prod()))
        found["volume"].append(size)
        if not size:
            found["shape"] += [np.nan] * 2
            found["position"] += [np.nan] * 3
            continue
        points = np.argwhere(mask) * sides
        # Each voxel adds its own variance, so that a flat structure is not infinitely elongated.
        covariance = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((3, 3))
        variances = np.linalg.eigvalsh(covariance + np.diag(sides**2 / 12))
        found["shape"] += [float(np.sqrt(variances[-1] / variances[0])), _faces(mask, sides) / (6 * size**2)]
        found["position"] += points.mean(axis=0).tolist()
    return found


def _faces(mask: NDArray[np.bool_], sides: NDArray[np.float64]) -> float:
    """Area in mm^2 of the faces between voxels inside and outside."""
    padded = np.pad(mask, 1)
    return float(sum(np.count_nonzero(np.diff(padded, axis=axis)) * np.delete(sides, axis).prod() for axis in range(3)))
