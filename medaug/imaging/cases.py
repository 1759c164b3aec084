"""Reads a case: its modalities, and its label on the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.imaging.reading import read_images, read_label
from medaug.imaging.volume import Header, Volume, grid_difference


@dataclass(frozen=True)
class HostImage:
    """An image as stored: array (M, X, Y, Z) float32 in the file's units, affine (4, 4) in mm, type on disk."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]

    @property
    def grid(self) -> Header:
        """Shape and affine."""
        return Volume(self.array[0], self.affine, self.dtype).header


def read_modalities(manifest: Manifest, case: Case, names: Sequence[str] | None = None) -> HostImage:
    """Read the image of a case.

    Args:
        manifest: the manifest that lists the case.
        case: has one file per modality, or one file with all of them.
        names: modalities to read, in this order; None: all. Files of other modalities are not opened.

    Raises:
        UserError: as for `read_images`, or the number of volumes is not the number of modalities in the manifest.
    """
    paths = manifest.image_paths(case)
    indices = [manifest.modalities.index(name) for name in (manifest.modalities if names is None else names)]
    separate = len(paths) == len(manifest.modalities)
    wanted = [paths[i] for i in indices] if separate else paths
    array, affine, dtype = read_images(wanted)
    if len(array) != (len(indices) if separate else len(manifest.modalities)):
        raise UserError(
            f"{case.name}: {len(array)} image volume(s), but the manifest names {len(manifest.modalities)} "
            f"modalities ({', '.join(manifest.modalities)})",
            "correct the manifest or the file",
        )
    return HostImage(array if separate or names is None else array[indices], affine, dtype)


def read_indices(manifest: Manifest, case: Case, grid: Header) -> NDArray[np.uint8] | None:
    """Read the class indices (X, Y, Z) of a case; None if it has no label.

    Args:
        manifest: the manifest that lists the case.
        case: with or without a label.
        grid: the grid of the case's image.

    Raises:
        UserError: as for `read_label`; or the label is on another grid, or has a value that is not in the schema.
    """
    path = manifest.label_path(case)
    if path is None:
        return None
    label = _read_beside(manifest, case, path, grid, "label")
    return manifest.schema.to_indices(label.array, path)


def read_doubt(manifest: Manifest, case: Case, grid: Header) -> NDArray[np.uint8] | None:
    """Read where screening doubts a case's mask: (X, Y, Z), 1 where in doubt, else 0; None if there is no map.

    Args:
        manifest: the manifest that lists the case.
        case: with or without a confidence map.
        grid: the grid of the case's image.

    Raises:
        UserError: the map cannot be read, is on another grid, or has other values than 0 and 1.
    """
    path = manifest.confidence_path(case)
    if path is None:
        return None
    confidence = _read_beside(manifest, case, path, grid, "confidence map").array
    if not np.isin(confidence, (0, 1)).all():
        raise UserError("a confidence map holds other values than 0 and 1", "restore it, or generate again", path=path)
    return (confidence == 0).astype(np.uint8)


def _read_beside(manifest: Manifest, case: Case, path: Path, grid: Header, what: str) -> Volume:
    volume = read_label(path)
    if difference := grid_difference(grid, volume.header):
        image = manifest.image_paths(case)[0].name
        raise UserError(f"the {what} {difference} of {image}", "resample it onto the image's grid", path=path)
    return volume
