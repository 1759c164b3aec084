"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) volumes through SimpleITK, in RAS+ millimetres.

ITK 5.4 accepts damaged compressed voxels (always for MetaImage, sometimes for NRRD) and prints messages about a file to
standard error. So this module parses the text header first, to learn where the voxels are and how they are compressed,
and checks them before ITK reads them. Formats: https://itk.org/Wiki/ITK/MetaIO/Documentation and
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
from medaug.imaging.nifti import CHUNK, DEFLATE_RATIO, SLACK, damaged_compression, wrong_length
from medaug.imaging.volume import (
    LPS_TO_RAS,
    Doubt,
    Header,
    Volume,
    check_affine,
    check_memory,
    file_size,
    shape_text,
    unreadable,
)

_LONGEST_HEADER = 1 << 20  # headers of 3D Slicer's segmentations can have hundreds of kilobytes
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


# World axes of NRRD that ITK converts to its own; for any others the sides of the patient are unknown.
_NRRD_SPACES = {"left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las"}
_CONVERT = "convert the scan again from its source, or correct its header once you know"


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels of a file are stored.

    Attributes:
        path: the file that contains them.
        start: first byte.
        stop: byte after the last.
        compressed: by zlib or gzip.
        doubts: geometry that the text header does not state.
    """

    path: Path
    start: int
    stop: int
    compressed: bool
    doubts: tuple[Doubt, ...] = ()


def read_itk(path: str | os.PathLike[str]) -> list[Volume]:
    """Read the volumes of a MetaImage or NRRD file: one, or those along a fourth axis or a vector's components.

    Raises:
        UserError: the file is missing, unreadable, cut short, damaged, of another format, not 3-D or 4-D, has a
            singular affine, or stores its voxels in a way that is not supported: as text, in several files, or in a
            file outside its folder.
    """
    path = Path(path)
    reader, header, voxels = _open(path)
    check_memory(path, 2 * _voxel_bytes(header))  # ITK's copy and ours
    if voxels.compressed:
        _check_compressed(path, header, voxels)
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
    """Read only the header of a MetaImage or NRRD file. Raises as `read_itk`, but does not notice damaged voxels."""
    return _open(Path(path))[1]


def _open(path: Path) -> tuple[sitk.ImageFileReader, Header, _Voxels]:
    """Read the header twice, as text and through ITK, and check that the file is large enough for its shape."""
    file_size(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:  # ITK aborts the process on such a name
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
    if _voxel_bytes(header) > (voxels.stop - voxels.start) * (DEFLATE_RATIO if voxels.compressed else 1):
        raise wrong_length(path, header, too_short=True)
    return reader, header, voxels


def _read_geometry(path: Path, reader: sitk.ImageFileReader) -> Header:
    shape, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(shape) not in {3, 4} or min(shape) < 1 or (len(shape) == 4 and components > 1):
        raise UserError(
            "is not a 3-D volume",
            "give a file with three axes",
            code="not-3d",
            path=path,
            detail=f"shape {shape_text(shape)}",
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
    if start[:end].count(b"ElementDataFile") > 1:  # ITK may use the other one
        raise UserError("is damaged", "copy or convert it again", path=path, detail="two fields ElementDataFile")
    if fields.get("NDims") not in {"3", "4"}:  # ITK's buffers have room for ten axes, and it does not check
        axes = fields.get("NDims", "")[:20]
        raise UserError(
            "is not a 3-D volume", "give a file with three axes", code="not-3d", path=path, detail=f"NDims {axes}"
        )
    if fields.get("BinaryData", "False").lower() not in {"true", "1"}:
        raise UserError("stores its voxels as text", "convert it to .nii.gz", path=path)
    target = fields["ElementDataFile"]
    voxels = _locate(path, "" if target.upper() == "LOCAL" else target, end, compressed=False)
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
    return replace(voxels, stop=voxels.start + int(size), compressed=True)


def _find_nrrd_voxels(path: Path, start: bytes) -> _Voxels:
    if not start.startswith(b"NRRD"):
        raise UserError("is not a NRRD file", "convert it to .nii.gz", code="wrong-format", path=path)
    fields: dict[str, str] = {}
    end, line = _next_line(start, 0)
    while line:
        end, line = _next_line(start, end)
        name, _, value = (line or "").partition(": ")
        name = name.strip().lower().replace(" ", "")
        if name == "datafile" and name in fields:  # ITK may use the other one
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
    return replace(_locate(path, fields.get("datafile", ""), end, compressed=encoding != "raw"), doubts=doubts)


def _doubts(oriented: bool, sized: bool) -> tuple[Doubt, ...]:
    """Return what ITK assumed because the header does not state the directions of the axes or the voxel size."""
    sides = Doubt(
        "no-orientation",
        "does not say where its axes point: which side is left is a guess (SimpleITK's defaults were used)",
        _CONVERT,
    )
    size = Doubt("voxel-size-guessed", "does not say how large its voxels are (1 mm was assumed)", _CONVERT)
    return (*(() if oriented else (sides,)), *(() if sized else (size,)))


def _next_line(text: bytes, start: int) -> tuple[int, str | None]:
    """Return the end of the line that starts at `start`, and the line without its break (None after the last line)."""
    if start >= len(text):
        return start, None
    end = text.find(b"\n", start) + 1 or len(text)
    return end, text[start:end].decode("latin-1").rstrip("\r\n")


def _locate(path: Path, target: str, end: int, compressed: bool) -> _Voxels:
    """Find the voxels: after the header, which ends at byte `end`, or in the file `target` that the header names."""
    if not target:
        return _Voxels(path, end, file_size(path), compressed)
    if target.split()[0].upper() == "LIST" or "%" in target:
        raise UserError("stores its voxels in several files", "convert it to .nii.gz", path=path)
    folder = os.path.abspath(path.parent)
    data = os.path.normpath(os.path.join(folder, target.encode("latin-1").decode("utf-8", "surrogateescape")))
    if os.path.commonpath([folder, data]) != folder:
        raise UserError("names a voxel file outside its folder", "keep the two files together", path=path, detail=data)
    if not os.path.lexists(data):
        raise UserError(
            "names a voxel file that does not exist", "keep the two files together", path=path, detail=target
        )
    return _Voxels(Path(data), 0, file_size(data), compressed)


def _check_compressed(path: Path, header: Header, voxels: _Voxels) -> None:
    """Decompress the voxels without keeping them, to check that they are complete, their number and their checksum."""
    left = _voxel_bytes(header) + SLACK
    unpacker = zlib.decompressobj(wbits=47)  # detects zlib or gzip by the first bytes
    try:
        with voxels.path.open("rb") as file:
            file.seek(voxels.start)
            unread = voxels.stop - voxels.start
            while not unpacker.eof:
                chunk = unpacker.unconsumed_tail or file.read(min(CHUNK, unread))
                if not chunk:
                    raise EOFError("the end of the compressed voxels is missing")
                if not unpacker.unconsumed_tail:
                    unread -= len(chunk)
                left -= len(unpacker.decompress(chunk, CHUNK))
                if left < 0:
                    raise wrong_length(path, header, too_short=False)
    except OSError as error:
        raise unreadable(voxels.path, error) from error
    except (EOFError, zlib.error) as error:
        raise damaged_compression(path, error) from error
    if left > SLACK:
        raise wrong_length(path, header, too_short=True)


def _voxel_bytes(header: Header) -> int:
    return math.prod(header.shape) * header.num_volumes * header.dtype.itemsize


def _damaged(path: Path, error: Exception) -> UserError:
    """Turn ITK's message of many lines into an error; the last line with content is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    causes = [line for line in lines if not line.startswith(("Exception thrown", "Reason:"))] or lines
    # "MetaImageIO(0x55d5): cause", "sitk::ERROR: cause", "[nrrd] function: cause"
    reason = re.sub(r"^(.*\(0x[0-9a-f]+\):|sitk::ERROR:|\[nrrd\] \w+:)\s*", "", causes[-1])
    if reason.startswith("File cannot be read"):
        reason = "ITK cannot parse its header"
    return UserError("is damaged", "copy or convert it again", path=path, detail=reason[:120])
