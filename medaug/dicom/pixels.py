"""The pixels of one DICOM file: decoded whole or not at all, and rescaled to the values that they stand for.

Damaged compressed data can take the process down inside a decoder: callers that meet unknown files work in isolated
processes. PixelPaddingValue and MONOCHROME1 (shown inverted) change no value here.
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
    # It writes to standard error what it does not like, past Python.
    for _switch in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        _switch()

_MOST_PIXELS = 512 << 20  # bytes; larger images must not be packed more than 64 to 1
_COPY = "copy or export it again"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class PixelError(UserError):
    """Pixels that cannot be decoded. It has no path: the name of a DICOM file may name a person."""


def decode(instance: Instance) -> NDArray[Any]:
    """Read and decompress the stored values of a grey image.

    Returns:
        (frames, rows, columns) in the type in which they are stored.

    Raises:
        PixelError: there are none, fewer than the header promises, of a compression that no installed decoder
            reads, or damaged.
    """
    with quiet():
        try:
            dataset = pydicom.dcmread(instance.path, force=True)
        except Exception as error:  # pydicom has no base class for what a damaged file can raise
            raise PixelError(f"has a file that cannot be read ({type(error).__name__})", _COPY) from None
        if not any(keyword in dataset for keyword in _PIXELS):
            raise PixelError("has a file without pixel data, or cut short", _COPY)
        bits, high = dataset.get("BitsStored"), dataset.get("HighBit")
        if bits and high is not None and high != bits - 1:
            raise PixelError(f"has pixels whose lowest bit is not their first (HighBit {high} of {bits} bits)", _COPY)
        if "TransferSyntaxUID" not in dataset.file_meta:
            # Files without the standard's preamble; they are never compressed.
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
        except Exception as error:  # likewise, and each decoder has errors of its own
            if "does not support" in str(error):  # such as JPEG of 12 bits
                raise unknown from None
            reason = f"({type(error).__name__})"
            raise PixelError(f"has pixel data that are cut short or damaged {reason}", _COPY) from None
    shape = (instance.frames, instance.rows, instance.columns)
    if array.size != np.prod(shape):
        raise PixelError("has pixel data of another size than its header says", _COPY)
    return array.reshape(shape)


def rescaled_dtype(instances: Iterable[Instance]) -> np.dtype[Any]:
    """The type for the rescaled values of these images, from their headers alone.

    int16 or int32, the first that holds all that BitsStored bits can say, where every slope and intercept is a whole
    number; else float32.
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
    """Stored values times the plane's slope plus its intercept; untouched where these are 1 and 0, else float64."""
    if plane.slope == 1 and plane.intercept == 0:
        return stored
    return stored * np.float64(plane.slope) + plane.intercept
