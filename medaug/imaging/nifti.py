"""NIfTI volumes in and out, with geometry in RAS+ millimetres and one clear line for a bad file."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError
from numpy.typing import ArrayLike

from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.imaging.volume import Header, Volume, bad_file, check_affine, file_size, times, unreadable

DEFLATE_RATIO = 1032  # zlib packs at most so many bytes into one (https://zlib.net/zlib_tech.html)
SLACK = 1 << 20  # bytes that a file may hold beyond its voxels
CHUNK = 1 << 20  # bytes unpacked at a time

_MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI xyzt_units: metre, micron; 2 is mm, and so is taken any other
_HEADER_BYTES = 540  # the longer header, of NIfTI-2
_SILENT = logging.getLogger(f"{__name__}.silent")  # nibabel reports what it mends in a header, line by line
_SILENT.disabled = True


def read_nifti(path: str | os.PathLike[str]) -> list[Volume]:
    """Read the volumes of a 3-D (one) or 4-D (X, Y, Z, M) NIfTI file.

    No more memory is set aside than the header asks for, and not before the file can be that long.

    Raises:
        UserError: the file is missing, unreadable, cut short, not NIfTI, not 3-D or 4-D, does not fit into memory,
            or has a singular affine.
    """
    path = Path(path)
    with _opened(path) as stream:
        start = stream.read(_HEADER_BYTES)
        raw, header, length = _parse(path, start)
        try:
            data = np.empty(length, np.uint8)
            filled = min(len(start), length)
            data[:filled] = np.frombuffer(start, np.uint8, filled)
            while filled < length:
                chunk = stream.read(min(CHUNK, length - filled))
                if not chunk:
                    raise _wrong_length(path, "is too short for", header)
                data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                filled += len(chunk)
            if len(stream.read(SLACK + 1)) > SLACK:  # reading to the end also checks gzip's checksum
                raise _wrong_length(path, "holds more than", header)
            shape = (*header.shape, header.num_volumes)
            stack = np.ndarray(shape, header.dtype, data.data, raw.get_data_offset(), order="F")
            with np.errstate(all="ignore"):
                stack = apply_read_scaling(stack, *raw.get_slope_inter())
        except MemoryError:
            raise bad_file(path, f"needs {length / 2**30:.1f} GiB of memory", "use a larger machine") from None
    return [Volume(stack[..., index], header.affine, header.dtype) for index in range(header.num_volumes)]


def read_nifti_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a NIfTI file alone. Raises as `read_nifti`, but damage to a .nii.gz's voxels goes unseen."""
    path = Path(path)
    with _opened(path) as stream:
        return _parse(path, stream.read(_HEADER_BYTES))[1]


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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it where its name ends in .gz."""
    file_size(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        try:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise bad_file(path, f"is cut short or damaged ({error})", "copy it again") from error
        except OSError as error:
            raise unreadable(path, error) from error


def _parse(path: Path, start: bytes) -> tuple[Any, Header, int]:
    """Read nibabel's header, ours, and the bytes up to the last voxel from the first bytes of a file."""
    # The magic strings of single files; header and image in two files ("ni1") are not supported.
    if start[344:347] == b"n+1":
        kind = nib.Nifti1Header
    elif start[4:7] == b"n+2":
        kind = nib.Nifti2Header
    else:
        raise bad_file(path, "is not a NIfTI file", "convert it to .nii.gz")
    try:
        raw = kind(start[: kind.sizeof_hdr], check=False)
        raw.check_fix(logger=_SILENT)
        shape, dtype, offset = tuple(map(int, raw.get_data_shape())), raw.get_data_dtype(), raw.get_data_offset()
        affine = np.array(raw.get_best_affine(), dtype=np.float64)
        raw.get_slope_inter()  # raises where they are not numbers
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        # nibabel has no common base class for what a damaged header can raise.
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise bad_file(path, f"is damaged ({reason[:120]})", "copy or convert it again") from error
    if len(shape) not in {3, 4} or min(shape) < 1:
        raise bad_file(path, f"is not a 3-D volume (shape {times(shape)})", "give a file with three axes")
    if dtype.kind not in "iuf":
        raise bad_file(path, f"holds {dtype} values, not plain numbers", "convert it to integers or floats")
    affine[:3] *= _MILLIMETRES.get(int(raw["xyzt_units"]) % 8, 1.0)
    x, y, z, *volumes = shape
    header = Header((x, y, z), affine, dtype, *volumes)
    length = offset + math.prod(shape) * dtype.itemsize
    packed, size = path.suffix == ".gz", file_size(path)
    if length > size * (DEFLATE_RATIO if packed else 1):
        raise _wrong_length(path, "is too short for", header)
    if not packed and size > length + SLACK:
        raise _wrong_length(path, "holds more than", header)
    check_affine(path, affine)
    return raw, header, length


def _wrong_length(path: Path, how: str, header: Header) -> UserError:
    shape = header.shape if header.num_volumes == 1 else (*header.shape, header.num_volumes)
    return bad_file(path, f"{how} its shape {times(shape)}", "copy or convert it again")
