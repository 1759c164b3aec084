"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) volumes through SimpleITK, in RAS+ millimetres.

ITK 5.4 takes damaged compressed voxels for good ones (MetaImage always, NRRD now and then) and prints what it thinks of
a file to standard error. So the text header is read here first: it says where the voxels lie and how they are
packed, and they are checked before ITK sees them. Formats: https://itk.org/Wiki/ITK/MetaIO/Documentation and
https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medaug.errors import UserError
from medaug.imaging.nifti import CHUNK, DEFLATE_RATIO, SLACK
from medaug.imaging.volume import (
    LPS_TO_RAS,
    Doubt,
    Header,
    Volume,
    check_affine,
    check_memory,
    file_size,
    times,
    unreadable,
)

_LONGEST_HEADER = 1 << 20  # those of 3D Slicer's segmentations can take hundreds of kilobytes
_TYPES = {
    getattr(sitk, f"sitk{vector}{name}"): np.dtype(code)
    for vector in ("", "Vector")
    for name, code in zip(
        ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64"),
        ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"),
        strict=True,
    )
}

sitk.ProcessObject.SetGlobalWarningDisplay(False)


# World axes of NRRD that ITK brings into its own; in others the sides of the patient are unknown.
_NRRD_SPACES = {"left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las"}
_CONVERT = "convert the scan again from its source, or mend its header once you know"


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels of a file lie: in which file, from which byte to which, packed by zlib or gzip or not.

    Attributes:
        doubts: what the text header, which says so, does not say of the geometry.
    """

    path: Path
    start: int
    stop: int
    packed: bool
    doubts: tuple[Doubt, ...] = ()


def read_itk(path: str | os.PathLike[str]) -> list[Volume]:
    """Read the volumes of a MetaImage or NRRD file: one, or those along a fourth axis or a vector's components.

    Raises:
        UserError: the file is missing, unreadable, cut short, damaged, of another format, not 3-D or 4-D, has a
            singular affine, or keeps its voxels in a way that is not read here: as text, in several files, or in a
            file outside its own folder.
    """
    path = Path(path)
    reader, header, voxels = _open(path)
    check_memory(path, 2 * _voxel_bytes(header))  # ITK's and ours
    if voxels.packed:
        _check_packed(path, header, voxels)
    try:
        image = reader.Execute()
        array = sitk.GetArrayFromImage(image)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            size = _voxel_bytes(header) / 2**30
            raise UserError(f"needs {size:.1f} GiB of memory", "use a larger machine", path=path) from None
        raise _damaged(path, error) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    stack = array.T.reshape(*header.shape, header.num_volumes)
    return [
        Volume(stack[..., index], header.affine, header.dtype, header.doubts) for index in range(header.num_volumes)
    ]


def read_itk_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a MetaImage or NRRD file alone. Raises as `read_itk`, but damage to voxels goes unseen."""
    return _open(Path(path))[1]


def _open(path: Path) -> tuple[sitk.ImageFileReader, Header, _Voxels]:
    """Read the header twice, as text and through ITK, and compare what it promises to the size of the file."""
    file_size(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:  # ITK ends the process over such a name
        raise UserError("has a name that is not UTF-8", "rename it", path=path) from None
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_HEADER)
    except OSError as error:
        raise unreadable(path, error) from error
    meta = path.suffix.lower() in {".mha", ".mhd"}
    voxels = _find_meta_voxels(path, start) if meta else _find_nrrd_voxels(path, start)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if meta else "NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(path, error) from error
    header = replace(_read_geometry(path, reader), doubts=voxels.doubts)
    if _voxel_bytes(header) > (voxels.stop - voxels.start) * (DEFLATE_RATIO if voxels.packed else 1):
        raise UserError(
            f"is too short for its shape {times(header.shape)}", "copy or convert it again", code="truncated", path=path
        )
    return reader, header, voxels


def _read_geometry(path: Path, reader: sitk.ImageFileReader) -> Header:
    shape, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(shape) not in {3, 4} or min(shape) < 1 or (len(shape) == 4 and components > 1):
        raise UserError(
            "is not a 3-D volume",
            "give a file with three axes",
            code="not-3d",
            path=path,
            detail=f"shape {times(shape)}",
        )
    if reader.GetPixelID() not in _TYPES:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise UserError(
            f"holds {kind} values, not plain numbers", "convert it to integers or floats", code="wrong-type", path=path
        )
    affine = np.eye(4)
    direction: NDArray[np.float64] = np.reshape(reader.GetDirection(), (len(shape), len(shape)))
    affine[:3, :3] = direction[:3, :3] * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = LPS_TO_RAS @ affine
    check_affine(path, affine)
    x, y, z, *volumes = (*shape, components) if components > 1 else shape
    return Header((x, y, z), affine, _TYPES[reader.GetPixelID()], *volumes)


def _find_meta_voxels(path: Path, start: bytes) -> _Voxels:
    fields: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in fields:
        end, line = _next_line(start, end)
        if line is None:
            raise UserError("is not a MetaImage file", "convert it to .nii.gz", code="wrong-format", path=path)
        name, _, value = line.replace(":", "=", 1).partition("=")
        fields[name.strip()] = value.strip()
    if start[:end].count(b"ElementDataFile") > 1:  # ITK may take the other one
        raise UserError("is damaged", "copy or convert it again", path=path, detail="two fields ElementDataFile")
    if fields.get("NDims") not in {"3", "4"}:  # ITK keeps ten numbers per axis and does not count them
        axes = fields.get("NDims", "")[:20]
        raise UserError(
            "is not a 3-D volume", "give a file with three axes", code="not-3d", path=path, detail=f"NDims {axes}"
        )
    if fields.get("BinaryData", "False").lower() not in {"true", "1"}:
        raise UserError("stores its voxels as text", "convert it to .nii.gz", path=path)
    target = fields["ElementDataFile"]
    voxels = _locate(path, "" if target.upper() == "LOCAL" else target, end, packed=False)
    voxels = replace(
        voxels,
        doubts=_doubts(
            oriented=not fields.keys().isdisjoint({"TransformMatrix", "Rotation", "Orientation"}),
            sized=not fields.keys().isdisjoint({"ElementSpacing", "ElementSize"}),
        ),
    )
    if fields.get("CompressedData", "False").lower() not in {"true", "1"}:
        return voxels
    size = fields.get("CompressedDataSize", str(voxels.stop - voxels.start))[:20]
    if not re.fullmatch("[0-9]+", size) or not 0 < int(size) <= voxels.stop - voxels.start:
        raise UserError("is cut short or damaged", "copy it again", path=path, detail=f"CompressedDataSize {size}")
    return replace(voxels, stop=voxels.start + int(size), packed=True)


def _find_nrrd_voxels(path: Path, start: bytes) -> _Voxels:
    if not start.startswith(b"NRRD"):
        raise UserError("is not a NRRD file", "convert it to .nii.gz", code="wrong-format", path=path)
    fields: dict[str, str] = {}
    end, line = _next_line(start, 0)
    while line:
        end, line = _next_line(start, end)
        name, _, value = (line or "").partition(": ")
        name = name.strip().lower().replace(" ", "")
        if name == "datafile" and name in fields:  # ITK may take the other one
            raise UserError("is damaged", "copy or convert it again", path=path, detail='two fields "data file"')
        fields[name] = value.strip()
    encoding = fields.get("encoding", "").lower()
    if encoding not in {"raw", "gzip", "gz"}:
        raise UserError(
            "stores its voxels in an encoding that is not supported",
            "convert it to .nii.gz",
            path=path,
            detail=encoding[:20],
        )
    directions = "spacedirections" in fields
    doubts = _doubts(
        oriented=directions and fields.get("space", "").lower().removesuffix("-time") in _NRRD_SPACES,
        sized=directions or "spacings" in fields,
    )
    return replace(_locate(path, fields.get("datafile", ""), end, packed=encoding != "raw"), doubts=doubts)


def _doubts(oriented: bool, sized: bool) -> tuple[Doubt, ...]:
    """What ITK assumed of a file whose header does not say how its axes lie, or how large its voxels are."""
    sides = Doubt(
        "no-orientation",
        "does not say where its axes point: which side is left is a guess (they were taken as SimpleITK takes them)",
        _CONVERT,
    )
    size = Doubt("voxel-size-guessed", "does not say how large its voxels are (1 mm was assumed)", _CONVERT)
    return (*(() if oriented else (sides,)), *(() if sized else (size,)))


def _next_line(text: bytes, start: int) -> tuple[int, str | None]:
    """Return the end of the line that starts at `start`, and the line without its break: None behind the last."""
    if start >= len(text):
        return start, None
    end = text.find(b"\n", start) + 1 or len(text)
    return end, text[start:end].decode("latin-1").rstrip("\r\n")


def _locate(path: Path, target: str, end: int, packed: bool) -> _Voxels:
    """Find the voxels: behind the header's last byte `end`, or in the file `target` that the header names."""
    if not target:
        return _Voxels(path, end, file_size(path), packed)
    if target.split()[0].upper() == "LIST" or "%" in target:
        raise UserError("stores its voxels in several files", "convert it to .nii.gz", path=path)
    folder = os.path.abspath(path.parent)
    data = os.path.normpath(os.path.join(folder, target.encode("latin-1").decode("utf-8", "surrogateescape")))
    if os.path.commonpath([folder, data]) != folder:
        raise UserError(
            "takes its voxels from a file outside its folder", "keep the two files together", path=path, detail=data
        )
    if not os.path.lexists(data):
        raise UserError(
            "takes its voxels from a file that does not exist", "keep the two files together", path=path, detail=target
        )
    return _Voxels(Path(data), 0, file_size(data), packed)


def _check_packed(path: Path, header: Header, voxels: _Voxels) -> None:
    """Unpack the voxels once without keeping them: they are whole, as many as promised, and their checksum holds."""
    left = _voxel_bytes(header) + SLACK
    unpacker = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever its first bytes say
    try:
        with voxels.path.open("rb") as file:
            file.seek(voxels.start)
            unread = voxels.stop - voxels.start
            while not unpacker.eof:
                packed = unpacker.unconsumed_tail or file.read(min(CHUNK, unread))
                if not packed:
                    raise EOFError("the end of the compressed voxels is missing")
                if not unpacker.unconsumed_tail:
                    unread -= len(packed)
                left -= len(unpacker.decompress(packed, CHUNK))
                if left < 0:
                    raise UserError(f"holds more than its shape {times(header.shape)}", "convert it again", path=path)
    except OSError as error:
        raise unreadable(voxels.path, error) from error
    except (EOFError, zlib.error) as error:
        raise UserError(
            "is cut short or damaged",
            "copy it again",
            code="truncated" if isinstance(error, EOFError) else "damaged",
            path=path,
            detail=str(error),
        ) from error
    if left > SLACK:
        raise UserError(
            f"is too short for its shape {times(header.shape)}", "copy or convert it again", code="truncated", path=path
        )


def _voxel_bytes(header: Header) -> int:
    return math.prod(header.shape) * header.num_volumes * header.dtype.itemsize


def _damaged(path: Path, error: Exception) -> UserError:
    """The error for what ITK says over many lines, of which the last that says something is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = [line for line in lines if not line.startswith(("Exception thrown", "Reason:"))] or lines
    # "MetaImageIO(0x55d5): cause", "sitk::ERROR: cause", "[nrrd] function: cause"
    reason = re.sub(r"^(.*\(0x[0-9a-f]+\):|sitk::ERROR:|\[nrrd\] \w+:)\s*", "", said[-1])
    if reason.startswith("File cannot be read"):
        reason = "ITK makes no sense of its header"
    return UserError("is damaged", "copy or convert it again", path=path, detail=reason[:120])
