"""Decodes the pixels of one DICOM file, completely or not at all, and rescales them.

Damaged compressed data can crash the process inside a decoder, so callers read unknown files in isolated processes.
PixelPaddingValue and MONOCHROME1 (displayed inverted) do not change values here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medaug.dicom.instance import Instance, Plane, quiet, uid_name
from medaug.errors import UserError

try:
    import gdcm  # type: ignore[import-untyped]
except ImportError:
    pass
else:
    # gdcm prints warnings directly to standard error, where Python cannot catch them.
    for _switch in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        _switch()

_MOST_PIXELS = 512 << 20  # bytes; larger images may not be compressed by more than 64 to 1
_COPY = "copy or export it again"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class PixelError(UserError):
    """Pixels that cannot be decoded. It has no path, because the name of a DICOM file may name a person."""


def decode(instance: Instance) -> NDArray[Any]:
    """Read and decompress the stored values of a greyscale image.

    Returns:
        (frames, rows, columns) in the stored type.

    Raises:
        PixelError: there are no pixels, fewer than the header says, they are damaged, or no installed decoder supports
            their compression.
    """
    with quiet():
        try:
            dataset = pydicom.dcmread(instance.path, force=True)
        except Exception as error:  # pydicom's errors for damaged files have no common base class
            raise PixelError(f"has a file that cannot be read ({type(error).__name__})", _COPY) from None
        if not any(keyword in dataset for keyword in _PIXELS):
            raise PixelError("has a file without pixel data, or cut short", _COPY)
        bits, high = dataset.get("BitsStored"), dataset.get("HighBit")
        if bits and high is not None and high != bits - 1:
            raise PixelError(f"stores pixels with an unusual HighBit ({high} for {bits} bits)", _COPY)
        if "TransferSyntaxUID" not in dataset.file_meta:
            # A file without the standard's preamble, which is never compressed.
            implicit, little = dataset.original_encoding
            plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
        syntax = dataset.file_meta.TransferSyntaxUID
        unknown = PixelError(
            f"is compressed in a way that no installed decoder reads ({uid_name(syntax)})",
            "decompress it first, for example with dcmdjpeg or gdcmconv --raw",
        )
        size = instance.frames * instance.rows * instance.columns * instance.samples * -(-(bits or 32) // 8)
        if size > max(_MOST_PIXELS, 64 * instance.path.stat().st_size):
            raise PixelError(f"has a file too short for its pixels ({size / 2**30:.1f} GiB)", _COPY)
        try:
            if not get_decoder(syntax).is_available:
                raise unknown
            array = pixel_array(dataset, raw=True)
        except PixelError:
            raise
        except NotImplementedError:
            raise unknown from None
        except Exception as error:  # each decoder has its own errors, again without a common base class
            if "does not support" in str(error):  # such as JPEG of 12 bits
                raise unknown from None
            reason = f"({type(error).__name__})"
            raise PixelError(f"has pixel data that are cut short or damaged {reason}", _COPY) from None
    shape = (instance.frames, instance.rows, instance.columns)
    if array.size != np.prod(shape):
        raise PixelError("has pixel data whose size differs from its header", _COPY)
    return array.reshape(shape)


def rescaled_dtype(instances: Iterable[Instance]) -> np.dtype[Any]:
    """Return the type for the rescaled values of these images, from their headers.

    If every slope and intercept is a whole number, the first of int16 and int32 that can hold all values of BitsStored
    bits; else float32.
    """
    low, high = 0.0, 0.0
    for instance in instances:
        bits = instance.bits_stored
        if bits == 0:
            return np.dtype(np.float32)  # floating point pixels
        stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if instance.signed else (0, 2**bits - 1)
        for plane in instance.planes:
            if not (plane.slope.is_integer() and plane.intercept.is_integer()):
                return np.dtype(np.float32)
            ends = [value * plane.slope + plane.intercept for value in stored]
            low, high = min(low, *ends), max(high, *ends)
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float32)


def rescale(stored: NDArray[Any], plane: Plane) -> NDArray[Any]:
    """Return stored values * slope + intercept as float64; unchanged if slope is 1 and intercept 0."""
    if plane.slope == 1 and plane.intercept == 0:
        return stored
    return stored * np.float64(plane.slope) + plane.intercept
