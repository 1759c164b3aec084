"""Compressed copies made by independent tools, rescaling, and pixels that are damaged."""

from __future__ import annotations

import random
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import oblique, ramp, write_enhanced, write_series
from pydicom.uid import HTJ2KLossless, JPEGLSLossless, RLELossless

from medaug.dicom.headers import scan_in_process
from medaug.dicom.pixels import decode, rescaled_dtype
from medaug.dicom.series import read_folder, read_series, series_problems
from medaug.errors import UserError

# Transfer syntaxes by what the tools do on their own; each copy is lossless.
COPIES = {
    "jpeg-lossless-sv1": ("dcmcjpeg", ["+e1"], "1.2.840.10008.1.2.4.70"),
    "jpeg-lossless": ("dcmcjpeg", ["+el"], "1.2.840.10008.1.2.4.57"),
    "jpeg-ls": ("dcmcjpls", [], "1.2.840.10008.1.2.4.80"),
    "rle": ("dcmcrle", [], "1.2.840.10008.1.2.5"),
    "jpeg-2000": ("gdcmconv", ["--j2k"], "1.2.840.10008.1.2.4.90"),
    "deflated": ("dcmconv", ["+td"], "1.2.840.10008.1.2.1.99"),
    "big-endian": ("dcmconv", ["+tb"], "1.2.840.10008.1.2.2"),
    "implicit": ("dcmconv", ["+ti"], "1.2.840.10008.1.2"),
}


def noise(dtype, low, high, shape=(17, 12, 3)):
    return np.random.default_rng(5).integers(low, high, shape).astype(dtype)


STORED = {
    "int16": noise(np.int16, -32768, 32768),
    "uint16": noise(np.uint16, 0, 65536),
    "12-bit": noise(np.uint16, 0, 4096),
    "12-bit-signed": noise(np.int16, -2048, 2048),
    "uint8": noise(np.uint8, 0, 256),
}


def convert(tool, name, source, target):
    program, options, syntax = COPIES[name]
    target.mkdir()
    for path in source.iterdir():
        subprocess.run([tool(program), *options, path, target / path.name], check=True, capture_output=True)
        assert pydicom.dcmread(target / path.name, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax


def of_12_bits(index, dataset):
    dataset.BitsStored, dataset.HighBit = 12, 11


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", COPIES)
def test_compressed_copies_hold_the_same_voxels(tmp_path, tool, name, stored):
    array = STORED[stored]
    write_series(tmp_path / "plain", array, oblique(), edit=of_12_bits if "12" in stored else None)
    convert(tool, name, tmp_path / "plain", tmp_path / "copy")
    np.testing.assert_array_equal(read_folder(tmp_path / "copy").array, array)


@pytest.mark.parametrize("name", ["jpeg-lossless", "jpeg-ls", "rle", "jpeg-2000"])
def test_compressed_multi_frame(tmp_path, tool, name):
    array = ramp((40, 36, 4))  # gdcmconv --j2k crashes on very small images
    write_enhanced(tmp_path / "plain" / "e.dcm", array, oblique(), order=[1, 3, 0, 2], slope=2, intercept=1)
    convert(tool, name, tmp_path / "plain", tmp_path / "copy")
    np.testing.assert_array_equal(read_folder(tmp_path / "copy" / "e.dcm").array, array * 2 + 1)


def test_lossy_copy_equals_simpleitk(tmp_path, tool):
    smooth = (np.hypot(*np.mgrid[-20:20, -16:16])[..., None] * [[[9, 6]]]).astype(np.uint8)
    (path, _) = write_series(tmp_path / "plain", smooth)
    copy = tmp_path / "copy.dcm"
    subprocess.run([tool("dcmcjpeg"), "+eb", "+q", "70", path, copy], check=True, capture_output=True)
    (instance,) = scan_in_process(copy).series[0].instances
    decoded = decode(instance)
    np.testing.assert_array_equal(decoded, sitk.GetArrayFromImage(sitk.ReadImage(copy)))
    assert 0 < np.abs(decoded[0].T - smooth[:, :, 0].astype(int)).max() < 12


def test_jpeg_of_12_bits_is_named(tmp_path, tool):
    write_series(tmp_path / "plain", STORED["12-bit"], edit=of_12_bits)
    (tmp_path / "copy").mkdir()
    for path in (tmp_path / "plain").iterdir():
        command = [tool("dcmcjpeg"), "+ee", path, tmp_path / "copy" / path.name]
        subprocess.run(command, check=True, capture_output=True)
    refused(tmp_path / "copy", "is compressed in a way that no installed decoder reads (JPEG Extended")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["jpeg-2000", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jpeg-lossless", "jpeg-ls", "rle"))]
)
def test_study_survives_compression(medaug_data, tmp_path, tool, name):
    source = medaug_data / "dicom" / "PGBM-002" / "13_HCropVolume"
    convert(tool, name, source, tmp_path / "copy")
    a, b = read_folder(source), read_folder(tmp_path / "copy")
    np.testing.assert_array_equal(a.array, b.array)
    np.testing.assert_array_equal(a.affine, b.affine)


# Rescaling


@pytest.mark.parametrize(
    ("dtype", "bits", "slope", "intercept", "expected"),
    [
        (np.int16, 16, None, None, np.int16),
        (np.uint16, 12, 1, -1024, np.int16),
        (np.uint16, 16, 1, -1024, np.int32),
        (np.uint16, 16, None, None, np.int32),
        (np.uint8, 8, 3, 0, np.int16),
        (np.int16, 16, 0.5, 0, np.float32),
        (np.uint16, 12, 1, 0.25, np.float32),
        (np.uint16, 16, 1e6, 0, np.float32),
        (np.uint16, 12, [1, 2, 4], [0, -5, -9], np.int16),
        (np.uint16, 12, [1, 2.5, 4], [0, -5, -9], np.float32),
    ],
)
def test_rescaled_values_and_types(tmp_path, dtype, bits, slope, intercept, expected):
    array = noise(dtype, 0, 200)

    def edit(index, dataset):
        dataset.BitsStored, dataset.HighBit = bits, bits - 1

    write_series(tmp_path, array, slope=slope, intercept=intercept, edit=edit)
    volume = read_folder(tmp_path)
    values = array * np.broadcast_to(1.0 if slope is None else slope, 3)
    np.testing.assert_allclose(volume.array, values + (intercept if intercept is not None else 0), rtol=1e-7)
    assert volume.array.dtype == volume.dtype == expected
    assert rescaled_dtype(scan_in_process(tmp_path).series[0].instances) == expected


def test_values_beyond_bits_stored_are_refused(tmp_path, tool):
    write_series(tmp_path / "plain", STORED["uint16"])
    convert(tool, "jpeg-2000", tmp_path / "plain", tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        dataset = pydicom.dcmread(path)
        of_12_bits(0, dataset)
        dataset.save_as(path)
    refused(tmp_path / "copy", "beyond its BitsStored")


def test_bits_beyond_bits_stored_are_ignored(tmp_path):
    """Old overlays use the bits above BitsStored, and a 12-bit sign is not always extended to 16 bits."""
    array = STORED["12-bit"]
    write_series(tmp_path / "overlay", array | 0x8000, edit=of_12_bits)
    write_series(tmp_path / "sign", array.astype(np.int16), edit=of_12_bits)
    np.testing.assert_array_equal(read_folder(tmp_path / "overlay").array, array)
    np.testing.assert_array_equal(read_folder(tmp_path / "sign").array, (array.astype(int) + 2048) % 4096 - 2048)


def test_an_unusual_high_bit_is_refused(tmp_path):
    def high(index, dataset):
        dataset.BitsStored, dataset.HighBit = 12, 15

    write_series(tmp_path, STORED["12-bit"] << 4, edit=high)
    refused(tmp_path, "HighBit (15 for 12 bits)")


def test_signs_may_differ_from_slice_to_slice(tmp_path):
    array = STORED["uint16"]
    write_series(tmp_path, array, edit=lambda index, dataset: setattr(dataset, "PixelRepresentation", index % 2))
    expected = array.astype(int)
    expected[:, :, 1] = array.astype(np.int16)[:, :, 1]
    np.testing.assert_array_equal(read_folder(tmp_path).array, expected)


# Damage


def refused(folder, *words):
    (series,) = scan_in_process(folder).series
    with pytest.raises(UserError) as caught:
        read_series(series)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("series 1: ") and str(folder) not in text
    assert all(word in text for word in words)


def test_cut_short(tmp_path):
    paths = write_series(tmp_path, noise(np.int16, 0, 99, (40, 40, 3)))
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    assert [problem.code for problem in series_problems(scan_in_process(tmp_path).series[0])] == ["cut-short"]
    refused(tmp_path, "1 files that end before their pixels do", "copy or export it again")


@pytest.mark.parametrize("name", ["jpeg-lossless", "jpeg-ls", "rle", "jpeg-2000", "deflated"])
@pytest.mark.parametrize("kept", [0.97, 0.6])
def test_compressed_and_cut_short(tmp_path, tool, name, kept):
    write_series(tmp_path / "plain", noise(np.int16, 0, 900, (60, 50, 3)))
    convert(tool, name, tmp_path / "plain", tmp_path / "copy")
    path = tmp_path / "copy" / "0001.dcm"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    if name == "deflated":  # the header lies in the same stream
        with pytest.raises(UserError, match="damaged header"):
            read_folder(tmp_path / "copy")
    else:
        refused(tmp_path / "copy", "cut short")


def test_header_that_lies_about_its_size(tmp_path):
    def shorten(index, dataset):
        dataset.PixelData = bytes(80)
        dataset.DataSetTrailingPadding = bytes(2000)

    write_series(tmp_path, noise(np.int16, 0, 99), edit=shorten)
    refused(tmp_path, "cut short or damaged")


def test_no_pixels(tmp_path, tool):
    write_series(tmp_path / "plain", noise(np.int16, 0, 99))
    convert(tool, "rle", tmp_path / "plain", tmp_path / "copy")
    for path in [*(tmp_path / "plain").iterdir(), *(tmp_path / "copy").iterdir()]:
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        dataset.save_as(path)
    refused(tmp_path / "plain", "end before their pixels do")
    refused(tmp_path / "copy", "without pixel data")


def test_unsupported_compression_is_refused(tmp_path):
    paths = write_series(tmp_path, noise(np.int16, 0, 99))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
        dataset.save_as(path)
    refused(tmp_path, "High-Throughput JPEG 2000", "no installed decoder", "gdcmconv --raw")


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_one_frame_too_few(tmp_path, syntax):
    path = write_enhanced(tmp_path / "e.dcm", noise(np.int16, 0, 99))
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = pydicom.encaps.encapsulate(frames[:-1])
    dataset.save_as(path)
    refused(tmp_path, "cut short or damaged")


@pytest.mark.slow
def test_damaged_pixels_only_raise_user_errors(tmp_path, tool, capfd):
    """Bits flipped after the header, for decoders in Python; C decoders would need a worker process."""
    draw = random.Random("pixels")
    write_series(tmp_path / "plain", noise(np.int16, 0, 900, (20, 20, 2)))
    convert(tool, "rle", tmp_path / "plain", tmp_path / "copy")
    path = tmp_path / "copy" / "0001.dcm"
    data = path.read_bytes()
    start = data.rfind(b"\xe0\x7f\x10\x00")
    outcomes = set()
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(8):
            broken[draw.randrange(start + 12, len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(broken))
        try:
            outcomes.add(read_folder(tmp_path / "copy").array.shape)
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {(20, 20, 2), "refused"}
    assert capfd.readouterr() == ("", "")


def test_reading_changes_no_file(tmp_path):
    paths = write_series(tmp_path / "a", ramp())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    read_folder(tmp_path / "a")
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in paths)
