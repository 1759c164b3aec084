"""Reads a file by its suffix, whatever the format: volumes, labels, headers, and the modalities of one case."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.errors import UserError
from medaug.imaging.nifti import read_nifti, read_nifti_header
from medaug.imaging.volume import Header, Volume, check_memory, grid_difference, is_finite

_NIFTI = (".nii", ".nii.gz")
_ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*_NIFTI, *_ITK)  # of the formats that can be read; upper case is accepted too


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name that gives its format, as spelt there; "" if the format is not supported."""
    length = max((len(suffix) for suffix in SUFFIXES if name.lower().endswith(suffix)), default=0)
    return name[len(name) - length :]


def read_volumes(path: str | os.PathLike[str]) -> list[Volume]:
    """Read the volumes of a 3-D (one) or 4-D (X, Y, Z, M) file.

    Raises:
        UserError: the file is missing, unreadable, cut short, of another format, not 3-D or 4-D, or has a
            singular affine.
    """
    if _is_nifti(path):
        return read_nifti(path)
    from medaug.imaging.itk import read_itk

    return read_itk(path)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read only the header of a file.

    Raises:
        UserError: as for `read_volumes`, except that damaged voxels of a compressed file are not noticed.
    """
    if _is_nifti(path):
        return read_nifti_header(path)
    from medaug.imaging.itk import read_itk_header

    return read_itk_header(path)


def _is_nifti(path: str | os.PathLike[str]) -> bool:
    suffix = suffix_of(os.fspath(path)).lower()
    if not suffix:
        raise UserError(
            "has a format that is not supported",
            f"convert it to one of {' '.join(SUFFIXES)}",
            code="wrong-format",
            path=path,
        )
    return suffix in _NIFTI


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a 3-D file (a fourth dimension of 1 is dropped).

    Raises:
        UserError: as for `read_volumes`, or the file holds several volumes.
    """
    volumes = read_volumes(path)
    if len(volumes) != 1:
        raise UserError(f"holds {len(volumes)} volumes, not one", "give a 3-D file", path=path)
    return volumes[0]


def read_label(path: str | os.PathLike[str]) -> Volume:
    """Read a label file unchanged; `LabelSchema.to_indices` checks its values. Raises as `read_volume`."""
    return read_volume(path)


def read_images(
    paths: Sequence[str | os.PathLike[str]],
) -> tuple[NDArray[np.float32], NDArray[np.float64], np.dtype[Any]]:
    """Read the modalities of one case: M 3-D files on one grid, or one 4-D file of M volumes.

    Returns:
        array (M, X, Y, Z) float32 in the units of the files; affine (4, 4) to RAS+ mm; the smallest type that can
        hold the `storage` of every modality (usually the type on disk).

    Raises:
        UserError: as for `read_volume`; or shapes or affines differ; or a value is NaN or infinite.
    """
    volumes = [(path, volume) for path in paths for volume in read_volumes(path)]
    first_path, first = volumes[0]
    for path, volume in volumes:
        if difference := grid_difference(first.header, volume.header):
            raise UserError(
                f"{difference} of {Path(first_path).name}", "resample the modalities to one grid", path=path
            )
        if not is_finite(volume.array):
            raise UserError("holds NaN or infinite values", "replace them, or leave the case out", path=path)
    for path in paths:
        check_memory(path, 4 * sum(volume.array.size for source, volume in volumes if source == path))
    array = np.stack([volume.array.astype(np.float32, copy=False) for _, volume in volumes])
    return array, first.affine, np.result_type(*(volume.storage for _, volume in volumes))
