"""Reads and writes NIfTI volumes, with geometry in RAS+ millimetres and one clear line for a bad file."""

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
from numpy.typing import ArrayLike, NDArray

from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.imaging.volume import (
    GRID_TOLERANCE_MM,
    RIGHT_ANGLE,
    SMALL_VOXELS,
    Doubt,
    Header,
    Volume,
    check_affine,
    check_memory,
    corner_distance,
    distinct_sizes,
    file_size,
    memory_allowed,
    shape_text,
    shear,
    spacing,
    unreadable,
)

DEFLATE_RATIO = 1032  # zlib's largest compression ratio (https://zlib.net/zlib_tech.html)
SLACK = 1 << 20  # bytes that a file may hold beyond its voxels
CHUNK = 1 << 20  # bytes decompressed at a time

_GZIP_MAGIC = b"\x1f\x8b"
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # NIfTI xyzt_units: metre, micron; 2 and all others mean mm
_HEADER_BYTES = 540  # of NIfTI-2, whose header is the longer one
_LAST_CODE = 5  # largest sform_code and qform_code; readers written in C accept any code above 0
_QUATERNION_ROUNDING = 1e-5  # largest excess of b^2 + c^2 + d^2 over 1 if they were stored with six digits or more
_QUATERNION_WRONG = 1e-2  # a larger excess cannot be rounding
_SILENT = logging.getLogger(f"{__name__}.silent")  # nibabel logs every header field that it repairs
_SILENT.disabled = True


def read_nifti(path: str | os.PathLike[str]) -> list[Volume]:
    """Read the volumes of a 3-D (one) or 4-D (X, Y, Z, M) NIfTI file.

    Memory is allocated only after the file's size has been found plausible for its shape.

    Raises:
        UserError: the file is missing, unreadable, cut short, not NIfTI, not 3-D or 4-D, does not fit into memory,
            or has a singular affine.
    """
    path = Path(path)
    with _opened(path) as stream:
        start = stream.read(_HEADER_BYTES)
        raw, header, length = _parse(path, start)
        check_memory(path, length + _scaled_bytes(path, raw, header))
        try:
            data = np.empty(length, np.uint8)
            filled = min(len(start), length)
            data[:filled] = np.frombuffer(start, np.uint8, filled)
            while filled < length:
                chunk = stream.read(min(CHUNK, length - filled))
                if not chunk:
                    raise wrong_length(path, header, too_short=True)
                data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                filled += len(chunk)
            if len(stream.read(SLACK + 1)) > SLACK:  # reading to the end also checks gzip's checksum
                raise wrong_length(path, header, too_short=False)
            shape = (*header.shape, header.num_volumes)
            stack = np.ndarray(shape, header.dtype, data.data, raw.get_data_offset(), order="F")
            with np.errstate(all="ignore"):
                if _scaled_bytes(path, raw, header) == 4 * stack.size:
                    stack = _scale_to_float32(stack, *raw.get_slope_inter())
                else:
                    stack = apply_read_scaling(stack, *raw.get_slope_inter())
        except MemoryError:
            raise UserError(f"needs {length / 2**30:.1f} GiB of memory", "use a larger machine", path=path) from None
    return [
        Volume(stack[..., index], header.affine, header.dtype, header.doubts) for index in range(header.num_volumes)
    ]


def _scaled_bytes(path: Path, raw: Any, header: Header) -> int:
    """Return the bytes of the scaled values: 0 if the header does not scale, in float32 if float64 does not fit."""
    if raw.get_slope_inter() in {(None, None), (1, 0)}:
        return 0
    voxels = math.prod(header.shape) * header.num_volumes
    return (8 if voxels * (8 + header.dtype.itemsize) <= memory_allowed(path) else 4) * voxels


def _scale_to_float32(stack: NDArray[Any], slope: float, inter: float) -> NDArray[np.float32]:
    """Scale in double precision slice by slice, and store the result in single precision."""
    scaled = np.empty(stack.shape, np.float32, order="F")
    for z, index in np.ndindex(stack.shape[2:]):
        scaled[:, :, z, index] = stack[:, :, z, index] * np.float64(slope) + inter
    return scaled


def read_nifti_header(path: str | os.PathLike[str]) -> Header:
    """Read only the header of a NIfTI file. Raises as `read_nifti`, but does not notice damaged voxels of a .nii.gz."""
    path = Path(path)
    with _opened(path) as stream:
        return _parse(path, stream.read(_HEADER_BYTES))[1]


def read_description(path: str | os.PathLike[str]) -> str:
    """Read the note in the header of a NIfTI file (`descrip`). Raises as `read_nifti_header`."""
    path = Path(path)
    with _opened(path) as stream:
        note = bytes(_parse(path, stream.read(_HEADER_BYTES))[0]["descrip"].item())
    return note.rstrip(b"\0").decode("ascii", "replace")


def write_volume(path: str | os.PathLike[str], array: ArrayLike, affine: ArrayLike, description: str = "") -> None:
    """Write a NIfTI-1 file atomically; the same input gives the same bytes.

    Args:
        path: ends in .nii.gz or .nii.
        array: (X, Y, Z) in the type to be stored: uint8 for labels, int16 or float32 for images.
        affine: (4, 4) voxel indices to RAS+ mm, stored as sform and (without shear) qform, code 1, units mm.
        description: up to 79 ASCII characters for the header.

    Raises:
        UserError: the disk is full or the folder is not writable.
        ValueError: the array is not 3-D, or NIfTI does not have its type.
    """
    array = np.asarray(array)
    if array.ndim != 3:
        raise ValueError(f"expected an array (X, Y, Z), got shape {array.shape}")
    save_array(path, array, np.asarray(affine, dtype=np.float64), description)


def save_array(
    path: str | os.PathLike[str], array: NDArray[Any], affine: NDArray[np.float64], description: str
) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, M) as it is, atomically; affine in mm, RAS.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, and decompress it if its name ends in .gz."""
    file_size(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        try:
            if _is_gzip(path) and file.peek(2)[:2] != _GZIP_MAGIC:
                raise UserError(
                    "is not a gzip file, although its name says so",
                    "rename it, or copy or convert it again",
                    code="wrong-format",
                    path=path,
                )
            yield gzip.GzipFile(fileobj=file) if _is_gzip(path) else file  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise damaged_compression(path, error) from error
        except OSError as error:
            raise unreadable(path, error) from error


def _parse(path: Path, start: bytes) -> tuple[Any, Header, int]:
    """Parse the first bytes of a file; return nibabel's header, ours, and the number of bytes up to the last voxel."""
    # The magic strings of single files. Header and image in two files ("ni1") are not supported.
    if start[344:347] == b"n+1":
        kind = nib.Nifti1Header
    elif start[4:7] == b"n+2":
        kind = nib.Nifti2Header
    else:
        raise UserError("is not a NIfTI file", "convert it to .nii.gz", code="wrong-format", path=path)
    try:
        raw = kind(start[: kind.sizeof_hdr], check=False)
        stored_sizes = np.array(raw["pixdim"][1:4], np.float64)
        doubts = _repair_forms(path, raw)
        raw.check_fix(logger=_SILENT)
        shape, dtype, offset = tuple(map(int, raw.get_data_shape())), raw.get_data_dtype(), raw.get_data_offset()
        affine = np.array(raw.get_best_affine(), dtype=np.float64)
        raw.get_slope_inter()  # raises if they are not numbers
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        # nibabel's errors about a damaged header have no common base class.
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise UserError("is damaged", "copy or convert it again", path=path, detail=reason[:120]) from error
    if len(shape) not in {3, 4} or min(shape) < 1:
        raise UserError(
            "is not a 3-D volume",
            "give a file with three axes",
            code="not-3d",
            path=path,
            detail=f"shape {shape_text(shape)}",
        )
    if dtype.kind not in "iuf":
        raise UserError(
            f"holds {dtype} values, not plain numbers", "convert it to integers or floats", code="wrong-type", path=path
        )
    millimetres = _MILLIMETRES.get(int(raw["xyzt_units"]) % 8, 1.0)
    affine[:3] *= millimetres
    check_affine(path, affine)
    x, y, z = shape[:3]
    doubts += _doubts(raw, stored_sizes, affine, (x, y, z), millimetres)
    header = Header((x, y, z), affine, dtype, shape[3] if len(shape) == 4 else 1, tuple(doubts))
    length = offset + math.prod(shape) * dtype.itemsize
    compressed, size = _is_gzip(path), file_size(path)
    if length > size * (DEFLATE_RATIO if compressed else 1):
        raise wrong_length(path, header, too_short=True)
    if not compressed and size > length + SLACK:
        raise wrong_length(path, header, too_short=False)
    return raw, header, length


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _repair_forms(path: Path, raw: Any) -> list[Doubt]:
    """Repair sform and qform fields that readers written in C accept, but nibabel refuses or reads differently.

    Returns:
        A doubt about the qform if its error is too large for rounding.

    Raises:
        UserError: the affine comes from a quaternion that does not describe a rotation.
    """
    for code in ("sform_code", "qform_code"):
        raw[code] = np.clip(raw[code], 0, _LAST_CODE)
    raw["pixdim"][0] = -1 if raw["pixdim"][0] < 0 else 1  # only the sign counts, and 0 means 1
    fields = ("quatern_b", "quatern_c", "quatern_d")
    quaternion = np.array([raw[field] for field in fields], np.float64)
    excess = quaternion @ quaternion - 1
    length = np.sqrt(excess + 1)
    if not excess > raw.quaternion_threshold:
        return []
    if excess > _QUATERNION_WRONG:
        if raw["qform_code"] and not raw["sform_code"]:
            raise UserError(
                "has an affine that is not a rotation",
                "correct its header, or convert it again",
                code="bad-affine",
                path=path,
                detail=f"the quaternion of its qform has length {length:.4g}, not 1",
            )
        return []
    for field, value in zip(fields, quaternion / length, strict=True):
        raw[field] = value
    if excess <= _QUATERNION_ROUNDING or raw["sform_code"] or not raw["qform_code"]:
        return []
    angle = np.degrees(2 * np.sqrt(excess))  # upper bound of the rotation that the excess can hide
    what = f"has a qform that is not quite a rotation (its quaternion has length {length:.6g}, not 1)"
    remedy = f"convert the scan again if up to {angle:.2g} degrees matter: the nearest rotation was used"
    return [Doubt("qform-not-rotation", what, remedy)]


def _doubts(
    raw: Any, stored: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, int, int], millimetres: float
) -> Iterator[Doubt]:
    """Find geometry that had to be assumed because the file does not state it, or states it in two ways.

    Args:
        raw: nibabel's header after the repairs.
        stored: voxel sizes (3,) as stored in pixdim.
        affine: the affine (4, 4) that is used, in mm.
        shape: (X, Y, Z).
        millimetres: millimetres per unit of the file.
    """
    sform, qform = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    if not sform and not qform:
        axes = "".join(nib.aff2axcodes(affine))
        what = f"has neither sform nor qform: which side is left is a guess (its axes were assumed to be {axes})"
        yield Doubt("no-orientation", what, "convert the scan again from its source, or set the qform once you know")
    guessed = np.flatnonzero(~(stored > 0))
    if not sform and guessed.size:
        axis = int(guessed[0])
        what = f"has the voxel size {stored[axis]:g} along axis {axis + 1} in its header (pixdim)"
        remedy = f"correct the header: {spacing(affine)[axis]:g} mm was assumed"
        yield Doubt("voxel-size-guessed", what, remedy)
    if not sform:
        return
    limit = max(SMALL_VOXELS * min(spacing(affine)), GRID_TOLERANCE_MM)
    sheared = shear(affine).max() > RIGHT_ANGLE
    if sheared and not qform:
        what = "has an sform whose axes are not at right angles, and no qform"
        yield Doubt("not-orthogonal", what, "resample it to a grid with right angles: SimpleITK and nnU-Net refuse it")
    elif qform and not sheared:
        with contextlib.suppress(HeaderDataError, ValueError):  # a broken qform does no harm if there is an sform
            distance = corner_distance(shape, affine, np.diag([millimetres] * 3 + [1]) @ raw.get_qform())
            if distance > limit:
                what = f"has two affines, {distance:.3g} mm apart (sform and qform; the sform was used)"
                remedy = "copy the right one over the other: some tools read the sform, others the qform"
                yield Doubt("sform-qform-differ", what, remedy)
    elif not qform:
        sizes, others = spacing(affine), [abs(size) * millimetres for size in stored.tolist()]
        if any(abs(a - b) * side > limit for a, b, side in zip(sizes, others, shape, strict=True)):
            used, other = distinct_sizes(sizes, others)
            what = f"has voxels of {used} mm by its sform and of {other} mm by its pixdim (the sform was used)"
            remedy = "copy the right one over the other: some tools read the sform, others pixdim"
            yield Doubt("pixdim-differs", what, remedy)


def damaged_compression(path: Path, error: Exception) -> UserError:
    """Return the error for a file whose compressed data end early (EOFError) or cannot be decompressed."""
    return UserError(
        "is cut short or damaged",
        "copy it again",
        code="truncated" if isinstance(error, EOFError) else "damaged",
        path=path,
        detail=str(error),
    )


def wrong_length(path: Path, header: Header, too_short: bool) -> UserError:
    """Return the error for a file that holds fewer or more voxels than its header says."""
    shape = header.shape if header.num_volumes == 1 else (*header.shape, header.num_volumes)
    how, code = ("is too short for", "truncated") if too_short else ("holds more than", "damaged")
    return UserError(f"{how} its shape {shape_text(shape)}", "copy or convert it again", code=code, path=path)
