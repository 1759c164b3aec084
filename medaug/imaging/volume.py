"""A volume in memory: values and geometry in RAS+ millimetres, and the comparison of two grids."""

from __future__ import annotations

import errno
import math
import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medaug.errors import UserError

GRID_TOLERANCE_MM = 1e-3
"""Corners closer than this count as equal: coordinates are stored in single precision."""
RIGHT_ANGLE = 1e-4
"""Axes whose cosine is smaller count as perpendicular: SimpleITK 2.5.7 reads these, and refuses 1.5e-4."""
SMALL_VOXELS = 0.1
"""A distance between corners below this fraction of the smallest voxel side is only a warning."""


class Doubt(NamedTuple):
    """Something about the geometry that a reader had to assume, or on which the file contradicts itself.

    Attributes:
        code: the kind of doubt, in words with hyphens ("no-orientation").
        what: a phrase that follows the name of the file, such as "has two affines".
        remedy: what the user can do about it.
    """

    code: str
    what: str
    remedy: str


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4), its own inverse. World axes of DICOM and ITK point left, posterior, superior; those of NIfTI and medaug
point right, anterior, superior."""


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        shape: (X, Y, Z).
        affine: (4, 4) float64, voxel indices to RAS+ mm.
        dtype: the type on disk.
        num_volumes: volumes in the file: 1, or the length of a fourth axis.
        doubts: assumptions behind `affine`.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    num_volumes: int = 1
    doubts: tuple[Doubt, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        return spacing(self.affine)


@dataclass(frozen=True)
class Volume:
    """One scalar volume.

    Attributes:
        array: (X, Y, Z) values, in the type on disk, or in float64 if the header scales them.
        affine: (4, 4) float64, voxel indices to RAS+ mm (NIfTI: sform if set, else qform, as nibabel chooses).
        dtype: the type on disk.
        doubts: assumptions behind `affine`.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    doubts: tuple[Doubt, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        return spacing(self.affine)

    @property
    def storage(self) -> np.dtype[Any]:
        """The type in which to write such values: the type on disk, or float32 if the header scales them."""
        return self.dtype if self.array.dtype == self.dtype else np.dtype(np.float32)

    @property
    def header(self) -> Header:
        """The header of this volume."""
        x, y, z = self.array.shape
        return Header((x, y, z), self.affine, self.dtype, doubts=self.doubts)


def spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the voxel size in mm along each array axis of an affine (4, 4)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def shear(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return |cosines| (3, 3) between the array axes of an affine (4, 4), minus the identity: 0 if perpendicular."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.asarray(np.abs(axes.T @ axes - np.eye(3)))


def distinct_sizes(a: Sequence[float], b: Sequence[float], digits: int = 3) -> tuple[str, str]:
    """Format two voxel sizes ("1 x 1 x 2.5") with enough digits to show where they differ."""
    while True:
        one, other = ([f"{value:.{digits}g}" for value in values] for values in (a, b))
        if all(p != q or math.isclose(x, y, rel_tol=5e-5) for x, y, p, q in zip(a, b, one, other, strict=True)):
            return " x ".join(one), " x ".join(other)
        digits += 1


def grid_difference(a: Header, b: Header, tolerance: float | None = None) -> str:
    """Describe how two grids differ; "" if shapes are equal and corners are within a tolerance.

    Args:
        a: the reference.
        b: the grid to compare with it.
        tolerance: in mm; None: the fraction `SMALL_VOXELS` of the reference's smallest voxel side.
    """
    if tolerance is None:
        tolerance = max(SMALL_VOXELS * min(a.spacing), GRID_TOLERANCE_MM)
    if a.shape != b.shape:
        return f"has shape {shape_text(b.shape)} against {shape_text(a.shape)}"
    distance = corner_distance(a.shape, a.affine, b.affine)
    return f"lies {distance:.3g} mm away from the grid" if distance > tolerance else ""


def corner_distance(shape: Sequence[int], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest distance in mm between the corner voxels of a grid of `shape` under two affines (4, 4)."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape], [1])).reshape(4, -1)
    return float(np.linalg.norm(((a - b) @ corners)[:3], axis=0).max())


def is_finite(array: NDArray[Any]) -> bool:
    """Whether every value is a finite float32."""
    # min and max propagate NaN, and NaN compares false. This needs no temporary array of the volume's size.
    return bool(max(abs(float(array.min())), abs(float(array.max()))) <= np.finfo(np.float32).max)


def file_size(path: str | os.PathLike[str]) -> int:
    """Return the size of a file in bytes.

    Raises:
        UserError: it is missing, empty, not a file, or permission is denied.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        other = _same_name(Path(path))
        if not other:
            raise UserError(
                "does not exist", "check the path and the manifest's root", code="missing-file", path=path
            ) from None
        same = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", Path(path).name)
        how = "how accents are written (Unicode NFC or NFD)" if same else "capital letters"
        raise UserError(
            f"does not exist, but there is a file whose name differs only in {how}",
            "rename that file, or correct its name where it is listed",
            code="missing-file",
            path=path,
            detail=other,
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise unreadable(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block for ever
        raise UserError("is not a file", "give a file", code="unreadable", path=path)
    if not status.st_size:
        raise UserError("is empty", "copy it again", code="empty-file", path=path, detail="zero bytes")
    return status.st_size


def _same_name(path: Path) -> str:
    """Return the name of a file beside a missing one that differs only in case or Unicode form; "" if there is none."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    return next((name for name in names if _plain(name) == _plain(path.name)), "")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> UserError:
    """Return the error for a file that the operating system refused to open or read."""
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        "cannot be read", "check the path and its permissions", code="unreadable", path=path, detail=reason
    )


MEMORY = 2 << 30
"""Bytes of memory that reading any file may take; for large files the limit is eight times their size."""


def check_memory(path: str | os.PathLike[str], needed: int) -> None:
    """Refuse a file that would take more memory than `memory_allowed`, before any is allocated.

    Args:
        path: the file.
        needed: bytes.

    Raises:
        UserError: the file would need too much memory for its size on disk.
    """
    if needed > memory_allowed(path):
        reason = f"needs {needed / 2**30:.1f} GiB of memory, for a file of {file_size(path) / 2**20:.1f} MiB"
        raise UserError(reason, "check it, and convert it to a smaller type or grid", path=path)


def memory_allowed(path: str | os.PathLike[str]) -> int:
    """Return the bytes of memory that reading a file may take."""
    return max(MEMORY, 8 * file_size(path))


def check_affine(path: str | os.PathLike[str], affine: NDArray[np.float64]) -> None:
    """Raise a UserError if an affine (4, 4) is not finite or is singular."""
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else np.nan
    if not 1e-12 <= volume < np.inf:
        raise UserError(
            "has a singular or non-finite affine",
            "correct its header, or convert it again",
            code="bad-affine",
            path=path,
        )


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape: 40x56x40."""
    return "x".join(str(side) for side in shape)


def as_stored(volume: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert a volume to the host's voxel type; for integer types, values are rounded and clipped to their range.

    Raises:
        UserError: there are NaN or infinite values, which an integer type would turn into numbers.
    """
    if not np.isfinite(volume).all():
        raise UserError("a synthetic volume holds NaN or infinite values in its host's units", "leave that host out")
    if dtype.kind == "f":
        return volume.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(volume), limits.min, limits.max).astype(dtype)
