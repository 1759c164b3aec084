"""Small files that would need much memory, and the limit of memory for reading them."""

from __future__ import annotations

import gzip
import resource
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medaug.dicom.instance import read_headers
from medaug.errors import UserError
from medaug.imaging.nifti import read_nifti
from medaug.imaging.reading import read_images
from medaug.imaging.volume import MEMORY
from medaug.isolation import isolated


def write(path: Path, shape: tuple[int, ...], dtype: str, slope: float = 1.0, inter: float = 0.0) -> Path:
    """A NIfTI file of zeros, compressed a thousandfold."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), code=1)
    header.set_slope_inter(slope, inter)
    header["magic"], header["vox_offset"] = b"n+1", 352
    left = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        while left:
            left -= file.write(bytes(min(left, 1 << 24)))
    return path


def tried(function, path: Path) -> tuple[str, int]:
    """The reader's message, and its peak memory in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        function(path)
        message = ""
    except UserError as error:
        message = str(error)
    return message, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def nifti(path: Path) -> tuple[str, int]:
    return tried(read_nifti, path)


def images(path: Path) -> tuple[str, int]:
    return tried(lambda path: read_images([path]), path)


def headers(path: Path) -> str:
    (result,) = read_headers([path])
    return str(result)


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "dtype"), [(nifti, "f4"), (nifti, "i2"), (images, "u1")])
def test_a_small_file_of_a_huge_volume_is_refused_before_it_is_decompressed(tmp_path, reader, dtype):
    path = write(tmp_path / "a.nii.gz", (8, 8, 8), dtype, 2.0)
    with gzip.open(path) as file:
        content = bytearray(file.read())
    content[42:48] = np.array((1024, 1024, 1024), "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)) + bytes(5 << 20))  # long enough for the header to be plausible
    ((message, most),) = isolated(reader, [path], "", workers=1)
    assert f"{path}: needs " in message and "GiB of memory, for a file of 5.0 MiB; " in message
    assert most < 200 << 20


@pytest.mark.slow
def test_256_mib_of_bytes_with_a_slope_are_read_in_less_than_two_gigabytes(tmp_path):
    path = write(tmp_path / "a.nii.gz", (512, 512, 1024), "u1", 0.5, 3.0)
    ((message, most),) = isolated(nifti, [path], "", workers=1)
    assert message == "" and most < MEMORY


def test_scaled_values_in_single_precision_are_the_rounded_ones(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(-900, 3000, (7, 6, 5, 2)).astype("i2"), np.eye(4))
    image.header.set_slope_inter(0.37, -12.5)
    nib.save(image, tmp_path / "a.nii")
    double = [volume.array for volume in read_nifti(tmp_path / "a.nii")]
    monkeypatch.setattr("medaug.imaging.nifti.memory_allowed", lambda path: 3000)
    single = [volume.array for volume in read_nifti(tmp_path / "a.nii")]
    assert {a.dtype for a in double} == {np.dtype(np.float64)} and {a.dtype for a in single} == {np.dtype(np.float32)}
    for a, b in zip(double, single, strict=True):
        np.testing.assert_array_equal(a.astype(np.float32), b)


def deflated(path: Path, size: int) -> None:
    """A deflated DICOM file whose comment takes `size` bytes."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    dataset.save_as(path, enforce_file_format=True)
    start, rest = path.read_bytes()[:132], path.read_bytes()[132:]
    length = 12 + int.from_bytes(rest[8:12], "little")
    body = zlib.decompress(rest[length:], -15)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    element = b"\x20\x00\x00\x40UT\0\0" + size.to_bytes(4, "little")
    packed = packer.compress(body + element)
    while size:
        size -= (part := min(size, 1 << 24))
        packed += packer.compress(b" " * part)
    path.write_bytes(start + rest[:length] + packed + packer.flush())


@pytest.mark.slow
def test_a_deflated_dicom_file_that_expands_a_thousandfold_is_refused(tmp_path):
    path = tmp_path / "a.dcm"
    deflated(path, 1000)
    assert "1.2.5" in headers(path)
    deflated(path, 600 << 20)
    assert path.stat().st_size < 8 << 20
    assert headers(path) == "is deflated and expands to more than 512 MiB"
