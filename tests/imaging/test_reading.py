"""Reading damaged files of every format: each gives volumes, or one line with the reason."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fuzz import Trial, mutate, run_trials

from medaug.errors import UserError
from medaug.imaging.reading import SUFFIXES, read_header, read_volume, read_volumes, suffix_of
from medaug.imaging.volume import Volume


def read_both_ways(path: Path) -> None:
    """Read the header, then the voxels; check that they agree, and that a file with a bad header is refused."""
    try:
        header = read_header(path)
    except UserError:
        header = None
    volumes = read_volumes(path)
    assert header is not None
    assert len(volumes) == header.num_volumes
    for volume in volumes:
        assert isinstance(volume, Volume)
        assert volume.array.shape == header.shape
        assert volume.dtype == header.dtype
        np.testing.assert_array_equal(volume.affine, header.affine)
        volume.array.sum()


def _contents(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    array = rng.normal(100, 30, (9, 10, 11)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(array, np.diag([1, 2, 3, 1])), folder / name)
    nib.save(nib.Nifti2Image(np.stack([array] * 2, -1), np.diag([1, 2, 3, 1])), folder / "two.nii.gz")
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1, 2, 3))
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(image, str(folder / f"a{suffix}"))
        sitk.WriteImage(image, str(folder / f"packed{suffix}"), True)
        sitk.WriteImage(sitk.Compose(image, image), str(folder / f"vector{suffix}"), True)
    names = [path.name for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)]
    return {name: (folder / name).read_bytes() for name in names}


def _trials(folder: Path, count: int, first_seed: int = 0) -> list[Trial]:
    contents = list(_contents(folder).items())
    return [Trial(*contents[seed % len(contents)], first_seed + seed) for seed in range(count)]


def test_the_same_seed_makes_the_same_damage() -> None:
    content = bytes(range(256)) * 10
    assert mutate(content, 3) == mutate(content, 3) != content
    assert len({mutate(content, seed) for seed in range(50)}) == 50


@pytest.mark.slow
def test_500_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = run_trials(read_both_ways, _trials(tmp_path, 500), limit=2 << 30)
    assert max(outcome.seconds for outcome in outcomes) < 5
    assert max(outcome.memory for outcome in outcomes) < 500
    refused = sum(bool(outcome.error) for outcome in outcomes)
    assert 150 < refused < 500  # the damage is neither harmless nor always fatal


@pytest.mark.slow
def test_5000_damaged_files(tmp_path: Path) -> None:
    outcomes = run_trials(read_both_ways, _trials(tmp_path, 5000, first_seed=1000), limit=2 << 30)
    assert max(outcome.seconds for outcome in outcomes) < 5
    assert max(outcome.memory for outcome in outcomes) < 500


@pytest.mark.parametrize("name", ["a.png", "a.nii.bz2", "a.mgz", "a", "nii", "a.img"])
def test_unsupported_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    for reader in (read_header, read_volumes):
        with pytest.raises(UserError, match=r"has a format that is not supported; convert it to one of \.nii"):
            reader(tmp_path / name)


def test_names_and_reasons_stay_in_one_line(tmp_path: Path) -> None:
    for name in ("a\nb.nii", "a\x1b[31m.mha", os.fsdecode(b"a\xff.nii.gz")):
        with pytest.raises(UserError) as error:
            read_volumes(tmp_path / name)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_pipes_and_folders_are_refused_without_waiting(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(UserError, match="is not a file"):
        read_volumes(tmp_path / f"pipe{suffix}")


@pytest.mark.slow
def test_headers_of_real_volumes_are_those_of_the_full_read(medaug_data: Path) -> None:
    files = sorted((Path(medaug_data) / "Task04_Hippocampus").glob("*/*.nii.gz"))
    assert len(files) > 300
    for file in files:
        header, image = read_header(file), nib.load(file)
        assert header.shape == image.shape
        assert header.dtype == image.get_data_dtype()
        np.testing.assert_array_equal(header.affine, image.affine)
    for file in files[::10]:
        header, full = read_header(file), read_volume(file)
        assert (header.shape, header.dtype, header.num_volumes) == (full.array.shape, full.dtype, 1)
        np.testing.assert_array_equal(header.affine, full.affine)


@pytest.mark.slow
def test_volumes_from_many_tools_are_read_as_by_simpleitk(medaug_data: Path) -> None:
    folder = medaug_data / "singles"
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and suffix_of(file.name)]
    if not files:
        pytest.skip("no singles beside the hippocampus")
    for file in files:
        volume, image = read_volume(file), sitk.ReadImage(str(file))
        assert volume.doubts == ()  # all of them state the directions of their axes
        theirs = sitk.GetArrayFromImage(image).T
        np.testing.assert_allclose(volume.array, theirs, rtol=1e-6)
        far = [side - 1 for side in volume.array.shape]
        for index in ([0, 0, 0], far, [far[0], 0, far[2]]):
            x, y, z = image.TransformIndexToPhysicalPoint(index)  # LPS
            np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], (-x, -y, z), atol=2e-3)


def _peak(code: str) -> tuple[str, float]:
    """Run code that reads; returns what it printed and how many MiB it took beyond its imports."""
    script = (
        "import re, resource, SimpleITK, medaug.imaging.reading as reading\n"
        # not getrusage, whose peak begins at that of the process that started this one
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        f"before = peak()\ntry: {code}\nexcept Exception as error: print(error)\nprint(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    message, _, memory = done.stdout.strip().rpartition("\n")
    return message, float(memory)


def _nifti(shape: tuple[int, int, int]) -> bytes:
    """The first 352 bytes of a NIfTI file of uint8, without the voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4)


@pytest.mark.slow
def test_a_gzip_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    zeros = gzip.compress(bytes(1 << 24))
    path.write_bytes(gzip.compress(_nifti((10, 10, 10))) + zeros * 600)  # 10 MB for 10 GB
    assert 9e6 < path.stat().st_size < 11e6
    message, memory = _peak(f"reading.read_volumes({str(path)!r})")
    assert "holds more than its shape 10x10x10" in message
    assert memory < 30
    assert read_header(path).shape == (10, 10, 10)


@pytest.mark.slow
def test_a_bomb_in_a_metaimage(tmp_path: Path) -> None:
    path = tmp_path / "bomb.mha"
    header = "NDims = 3\nBinaryData = True\nCompressedData = True\nDimSize = 9 9 9\nElementType = MET_UCHAR\n"
    path.write_bytes(f"{header}ElementDataFile = LOCAL\n".encode() + zlib.compress(bytes(1 << 28)))
    message, memory = _peak(f"reading.read_volumes({str(path)!r})")
    assert "holds more than its shape 9x9x9" in message
    assert memory < 30


@pytest.mark.slow
def test_memory_is_not_allocated_for_voxels_that_are_missing(tmp_path: Path) -> None:
    # 500 kB could expand to the 512 MB that the header claims, but these are random and do not.
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(_nifti((800, 800, 800)) + np.random.default_rng(0).bytes(500_000)))
    message, memory = _peak(f"reading.read_volumes({str(path)!r})")
    assert "is too short for its shape 800x800x800" in message
    assert memory < 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha"])
def test_a_volume_that_does_not_fit_in_memory(tmp_path: Path, name: str) -> None:
    path, voxels = tmp_path / name, 400**3
    if name == "a.nii":
        path.write_bytes(_nifti((400, 400, 400)))
        os.truncate(path, 352 + voxels)
    elif name == "a.nii.gz":
        path.write_bytes(gzip.compress(_nifti((400, 400, 400)) + bytes(voxels), 1))
    else:
        header = "NDims = 3\nBinaryData = True\nDimSize = 400 400 400\nElementType = MET_UCHAR\n"
        path.write_text(f"{header}ElementDataFile = LOCAL\n")
        os.truncate(path, path.stat().st_size + voxels)
    used = "int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()"
    code = f"limit = {used} + (40 << 20); resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); "
    message, _ = _peak(f"{code}reading.read_volumes({str(path)!r})")
    assert "needs 0.1 GiB of memory; use a larger machine" in message
