"""The one reader of a case: its modalities and its label, on the host's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.imaging.reading import read_images, read_label
from medaug.imaging.volume import Header, Volume, grid_difference


@dataclass(frozen=True)
class HostImage:
    """An image as the scanner wrote it: (M, X, Y, Z) float32 in its own units, affine (4, 4) mm, type on disk."""

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
        manifest: of the case.
        case: its files are one per modality, or one with all.
        names: modalities to read, in this order; None: all. Files of other modalities are not opened.

    Raises:
        UserError: as `read_images`, or a file has another number of volumes than the manifest names modalities.
    """
    paths = manifest.image_paths(case)
    places = [manifest.modalities.index(name) for name in (manifest.modalities if names is None else names)]
    apart = len(paths) == len(manifest.modalities)
    wanted = [paths[i] for i in places] if apart else paths
    array, affine, dtype = read_images(wanted)
    if len(array) != (len(places) if apart else len(manifest.modalities)):
        raise UserError(
            f"{case.name}: {len(array)} image volume(s) where the manifest names {len(manifest.modalities)} "
            f"modalities ({', '.join(manifest.modalities)})",
            "correct the manifest or the file",
        )
    return HostImage(array if apart or names is None else array[places], affine, dtype)


def read_indices(manifest: Manifest, case: Case, grid: Header) -> NDArray[np.uint8] | None:
    """Read the class indices (X, Y, Z) of a case; None if it has no label.

    Args:
        manifest: of the case.
        case: with or without a label.
        grid: of the case's image.

    Raises:
        UserError: as `read_label`, the label lies on another grid, or it holds a value that the schema does not name.
    """
    path = manifest.label_path(case)
    if path is None:
        return None
    label = read_label(path)
    if difference := grid_difference(grid, label.header):
        image = manifest.image_paths(case)[0].name
        raise UserError(f"the label {difference} of {image}", "resample it onto the image's grid", path=path)
    return manifest.schema.to_indices(label.array, str(path))
