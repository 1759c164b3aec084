"""NIfTI volumes in and out, with geometry in RAS+ millimetres and one clear line for a bad file."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import ArrayLike, NDArray

from medaug.errors import UserError
from medaug.files import atomic_write

GRID_TOLERANCE_MM = 1e-3
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI xyzt_units: metre, micron; 2 is mm, and so is taken any other


@dataclass(frozen=True)
class Volume:
    """One scalar volume.

    Attributes:
        array: (X, Y, Z) values, in the type on disk, or float64 where the header scales them.
        affine: (4, 4) float64, voxel indices to RAS+ mm (sform if set, else qform, as nibabel chooses).
        dtype: the type on disk.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def storage(self) -> np.dtype[Any]:
        """The type in which such values can be written: that on disk, or float32 where the header scales them."""
        return self.dtype if self.array.dtype == self.dtype else np.dtype(np.float32)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a 3-D NIfTI file (a fourth dimension of 1 is dropped).

    Raises:
        UserError: the file is missing, unreadable, cut short, not NIfTI, not 3-D, or its affine is singular.
    """
    volumes = read_volumes(path)
    if len(volumes) != 1:
        raise _bad(path, f"holds {len(volumes)} volumes, not one", "give a 3-D file")
    return volumes[0]


def read_label(path: str | os.PathLike[str]) -> Volume:
    """Read a label file as it is; `LabelSchema.to_indices` checks its values. Raises as `read_volume`."""
    return read_volume(path)


def read_images(
    paths: Sequence[str | os.PathLike[str]],
) -> tuple[NDArray[np.float32], NDArray[np.float64], np.dtype[Any]]:
    """Read the modalities of one case: M 3-D files on one grid, or one 4-D file of M volumes.

    Returns:
        array (M, X, Y, Z) float32 in the units of the files, affine (4, 4) to RAS+ mm, the smallest type that holds
        the `storage` of every modality (the type on disk, as a rule).

    Raises:
        UserError: as `read_volume`; or shapes or affines disagree; or a value is NaN or infinite.
    """
    volumes = [(path, volume) for path in paths for volume in read_volumes(path)]
    first_path, first = volumes[0]
    for path, volume in volumes:
        if difference := grid_difference(first, volume):
            raise _bad(path, f"{difference} of {Path(first_path).name}", "resample the modalities to one grid")
        if not is_finite(volume.array):
            raise _bad(path, "holds NaN or infinite values", "replace them, or leave the case out")
    array = np.stack([volume.array.astype(np.float32, copy=False) for _, volume in volumes])
    return array, first.affine, np.result_type(*(volume.storage for _, volume in volumes))


def read_volumes(path: str | os.PathLike[str]) -> list[Volume]:
    """Read the volumes of a 3-D (one) or 4-D (X, Y, Z, M) NIfTI file.

    Raises:
        UserError: the file is missing, unreadable, cut short, not NIfTI, not 3-D or 4-D, or has a
            singular affine.
    """
    path = Path(path)
    data = _read_bytes(path)
    # The magic strings of single files; header and image in two files ("ni1") are not supported.
    if data[344:347] == b"n+1":
        kind = nib.Nifti1Image
    elif data[4:7] == b"n+2":
        kind = nib.Nifti2Image
    else:
        raise _bad(path, "is not a NIfTI file", "convert it to .nii.gz")
    try:
        image = kind.from_bytes(data)
        shape, dtype = tuple(image.shape), image.get_data_dtype()
        if len(shape) not in {3, 4} or min(shape) < 1:
            raise _bad(path, f"is not a 3-D volume (shape {_times(shape)})", "give a file with three axes")
        if dtype.kind not in "iuf":
            raise _bad(path, f"holds {dtype} values, not plain numbers", "convert it to integers or floats")
        # Python integers, before memory is set aside for what a damaged header promises.
        if math.prod(map(int, shape)) * dtype.itemsize > len(data):
            raise _bad(path, f"is too short for its shape {_times(shape)}", "copy or convert it again")
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, ValueError, OverflowError) as error:
        # nibabel has no common base class for what a damaged header can raise.
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise _bad(path, f"is damaged ({reason[:120]})", "copy or convert it again") from error
    affine = image.affine.astype(np.float64)
    affine[:3] *= _MILLIMETRES.get(int(image.header["xyzt_units"]) % 8, 1.0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise _bad(path, "has a singular or non-finite affine", "mend its header or convert it again")
    stack = array.reshape(*shape[:3], -1)
    return [Volume(stack[..., index], affine, dtype) for index in range(stack.shape[3])]


def write_volume(path: str | os.PathLike[str], array: ArrayLike, affine: ArrayLike, description: str = "") -> None:
    """Write a NIfTI-1 file, whole or not at all, the same bytes for the same input.

    Args:
        path: ends in .nii.gz or .nii.
        array: (X, Y, Z) in the type to be stored: uint8 for labels, int16 or float32 for images.
        affine: (4, 4) voxel indices to RAS+ mm, stored as sform and (without shear) qform, code 1, units mm.
        description: up to 79 ASCII characters for the header.

    Raises:
        UserError: the disk is full or the folder cannot be written.
        ValueError: not 3-D, or a type that NIfTI does not have.
    """
    array = np.asarray(array)
    if array.ndim != 3:
        raise ValueError(f"expected an array (X, Y, Z), got shape {array.shape}")
    image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64), dtype=array.dtype)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def grid_difference(a: Volume, b: Volume) -> str:
    """Say how two grids differ, "" where shapes agree and corners lie within GRID_TOLERANCE_MM."""
    if a.array.shape != b.array.shape:
        return f"has shape {_times(b.array.shape)} against {_times(a.array.shape)}"
    distance = corner_distance(a.array.shape, a.affine, b.affine)
    return f"lies {distance:.3g} mm away from the grid" if distance > GRID_TOLERANCE_MM else ""


def corner_distance(shape: Sequence[int], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Largest distance in mm between the corner voxels of a grid of `shape` under two affines (4, 4)."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape], [1])).reshape(4, -1)
    return float(np.linalg.norm(((a - b) @ corners)[:3], axis=0).max())


def is_finite(array: NDArray[Any]) -> bool:
    """Whether every value is a finite float32."""
    # min and max hand NaN on, and NaN compares false; no temporary array of the volume's size is needed.
    return bool(max(abs(float(array.min())), abs(float(array.max()))) <= np.finfo(np.float32).max)


def _read_bytes(path: Path) -> bytes:
    """Read and unpack a file whole, so that gzip's checksum is checked: nibabel stops before it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _bad(path, "does not exist", "check the path and the manifest's root") from None
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from error
    if not data:
        raise _bad(path, "is empty (zero bytes)", "copy it again")
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise _bad(path, f"is cut short or damaged ({error})", "copy it again") from error


def _bad(path: str | os.PathLike[str], reason: str, remedy: str) -> UserError:
    return UserError(f"{os.fspath(path)}: {reason}; {remedy}")


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)
