"""The cache of model-space scans: entries are found by content, shared by processes, and right even after kills."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from six_scans import NAMES, PREPROCESSING, SHAPE, entries, same

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data import cache as files
from medaug.data import cases as module
from medaug.data.cache import read_entry
from medaug.data.cases import load_cases, read_case
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume


def test_entries_are_found_by_content_not_by_time_or_path(manifest, tmp_path, reads):
    cache = tmp_path / "cache"
    first = load_cases(manifest, manifest.cases, PREPROCESSING, cache)
    assert reads == list(NAMES)
    assert same(first, load_cases(manifest, manifest.cases, PREPROCESSING, cache))
    for path in Path(manifest.root).iterdir():
        os.utime(path, (2e9, 2e9))
    assert same(first, load_cases(manifest, manifest.cases, PREPROCESSING, cache))
    moved = replace(manifest, root=str(tmp_path / "moved"))
    shutil.move(manifest.root, moved.root)
    assert same(first, load_cases(moved, moved.cases, PREPROCESSING, cache))
    assert reads == list(NAMES)
    assert len(entries(cache)) == len(NAMES) and not list(cache.glob("*.lock"))


def test_changed_content_is_noticed_with_the_same_name_size_and_time(manifest, tmp_path, reads):
    """The file is not compressed, so its size stays; it is rewritten at once, so its times may stay as well."""
    case = Case("n", ("n.nii",), None, "n")
    one = replace(manifest, modalities=("T1",), cases=(case,))
    for value in range(5):
        volume = np.full(SHAPE, value, np.int16)
        volume[0, 0, 0] = 100
        write_volume(Path(manifest.root, "n.nii"), volume, np.eye(4))
        (found,) = load_cases(one, one.cases, PREPROCESSING, tmp_path / "cache")
        assert found.placement.low == (float(value),)
    assert reads == ["n"] * 5


def test_files_are_hashed_once(manifest, tmp_path, monkeypatch):
    hashed = []
    digest = files.hashlib.file_digest

    def counted(file, name):
        if Path(file.name).parent == Path(manifest.root):
            hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(files.hashlib, "file_digest", counted)
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    assert len(hashed) == len(set(hashed)) == 15
    load_cases(manifest, manifest.cases, replace(PREPROCESSING, shape=(16, 8, 8)), tmp_path / "cache")
    assert len(hashed) == 15
    path = manifest.label_path(manifest.cases[0])
    os.utime(path, (1e9 + 1, 1e9 + 1))
    load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    assert hashed[15:] == [path.name]
    (tmp_path / "cache" / "files.index").write_text('{"cut sh')
    load_cases(manifest, manifest.cases[:1], PREPROCESSING, tmp_path / "cache")
    assert len(hashed) == 16 + 3


@pytest.mark.parametrize("part", ["image.npy", "label.npy", "json"])
def test_an_entry_changed_by_another_program_is_refused_by_name(manifest, tmp_path, part):
    """The file is overwritten in place and keeps its size and modification time."""
    cache, case = tmp_path / "cache", manifest.cases[0]
    load_cases(manifest, [case], PREPROCESSING, cache)
    (path,) = cache.glob(f"*.{part}")
    for old, new in ((b'"int16"', b'"uint8"'),) if part == "json" else ((path.read_bytes()[-4:], b"\1\1\1\1"),):
        stat, content = path.stat(), path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new) if part == "json" else content[:-4] + new)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    stem = path.name.split(".")[0]
    with pytest.raises(
        UserError, match=rf"{stem}: the preprocessed scan of a was changed after it was written; remove"
    ):
        load_cases(manifest, [case], PREPROCESSING, cache)
    for leftover in cache.glob(f"{stem}.*"):
        leftover.unlink()
    load_cases(manifest, [case], PREPROCESSING, cache)


@pytest.mark.parametrize("header", [b"{'descr': \0", b"{'descr': (", b"(" * 100])
def test_an_array_whose_header_does_not_parse_is_made_again(manifest, tmp_path, header):
    cache = tmp_path / "cache"
    load_cases(manifest, manifest.cases[:1], PREPROCESSING, cache)
    (path,) = cache.glob("*.image.npy")
    content = path.read_bytes()
    path.write_bytes(content[:10] + header.ljust(118) + content[128:])
    assert read_entry(path.with_name(path.name.split(".")[0]), memory=True) is None


def test_an_entry_from_before_digests_is_made_again(manifest, tmp_path, reads):
    cache = tmp_path / "cache"
    load_cases(manifest, manifest.cases[:1], PREPROCESSING, cache)
    (path,) = entries(cache)
    content = json.loads(path.read_text())
    del content["digests"]
    path.write_text(json.dumps(content))
    load_cases(manifest, manifest.cases[:1], PREPROCESSING, cache)
    assert reads == ["a", "a"] and "digests" in json.loads(path.read_text())


def test_a_replaced_file_is_noticed_despite_its_old_time(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    path = Path(manifest.root, "x.nii")
    path.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    first = files.content_digests([path], tmp_path / "cache")[path]
    path.write_bytes(b"two")
    os.utime(path, (1e9, 1e9))
    second = files.content_digests([path], tmp_path / "cache")[path]
    assert first != second == hashlib.sha256(b"two").hexdigest()


def test_no_path_is_written_into_the_cache(manifest, tmp_path):
    load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    assert b"nii" not in written and manifest.root.encode() not in written


def test_everything_that_affects_a_case_is_in_its_key(manifest, tmp_path, reads):
    cache = tmp_path / "cache"
    case = manifest.cases[0]
    load_cases(manifest, [case], PREPROCESSING, cache)
    for other in (
        replace(PREPROCESSING, shape=(8, 8, 4)),
        replace(PREPROCESSING, spacing=(2.0, 2.0, 2.0)),
        replace(PREPROCESSING, percentiles=(1.0, 99.0)),
    ):
        (found,) = load_cases(manifest, [case], other, cache)
        host, _ = read_case(manifest, case)
        assert np.array_equal(found.image, other.apply_image(host.array, host.affine)[0])
    four_first = replace(manifest, schema=LabelSchema(((0, "background"), (4, "rim"), (1, "core"))))
    (swapped,) = load_cases(four_first, [case], PREPROCESSING, cache)
    assert np.array_equal(four_first.schema.to_values(swapped.label) == 4, np.asarray(swapped.label) == 1)
    # The same files, but the second modality is now the label.
    as_label = replace(
        manifest,
        modalities=("T1",),
        cases=(Case("b", ("b_0.nii.gz",), "b_1.nii.gz", "b", "train"),),
        schema=LabelSchema(((0, "background"), *((v, str(v)) for v in range(1, 200)))),
    )
    load_cases(replace(manifest, schema=as_label.schema), [manifest.cases[1]], PREPROCESSING, cache)
    with pytest.raises(UserError, match="not in the schema"):
        load_cases(as_label, as_label.cases, PREPROCESSING, cache)


def test_the_cache_format_is_in_the_key(manifest, tmp_path, reads, monkeypatch):
    load_cases(manifest, manifest.cases[:1], PREPROCESSING, tmp_path / "cache")
    monkeypatch.setattr(module, "CACHE_FORMAT", module.CACHE_FORMAT + 1)
    load_cases(manifest, manifest.cases[:1], PREPROCESSING, tmp_path / "cache")
    assert reads == ["a", "a"]


def test_cases_with_the_same_content_are_all_owners(manifest, tmp_path, reads):
    cache, first = tmp_path / "cache", manifest.cases[0]
    twin = replace(first, name="twin", subject="other")
    load_cases(manifest, [first], PREPROCESSING, cache)
    one, two = load_cases(manifest, [first, twin], PREPROCESSING, cache)
    load_cases(manifest, [twin], PREPROCESSING, cache)
    assert reads == ["a"] and one.case == first and two.case == twin
    (entry,) = entries(cache)
    owners = [{"case": "a", "subject": "subject_a"}, {"case": "twin", "subject": "other"}]
    assert json.loads(entry.read_text())["owners"] == owners


@pytest.mark.parametrize("part", ["image.npy", "label.npy", "json"])
@pytest.mark.parametrize("keep", [None, 0, 60, 200])
def test_a_damaged_entry_is_made_again(manifest, tmp_path, reads, part, keep):
    cache = tmp_path / "cache"
    before = [replace(c, image=c.image.copy()) for c in load_cases(manifest, manifest.cases[:1], PREPROCESSING, cache)]
    (path,) = cache.glob(f"*.{part}")
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    assert same(before, load_cases(manifest, manifest.cases[:1], PREPROCESSING, cache))
    assert reads == ["a", "a"]


def test_memory_and_disk_hold_the_same_bits(manifest, tmp_path):
    disk = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    memory = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache", memory=True)
    fresh = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "other", memory=True)
    assert same(disk, memory) and same(disk, fresh)
    assert all(isinstance(case.image, np.memmap) for case in disk)
    for case in memory + fresh:
        assert type(case.image) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            case.image[0, 0, 0, 0] = 1
    shutil.rmtree(tmp_path / "cache")
    assert all(np.isfinite(case.image).all() for case in memory)


def test_a_failing_case_leaves_no_valid_entry(manifest, tmp_path, monkeypatch):
    cache, case = tmp_path / "cache", manifest.cases[0]
    save = np.save

    def full(path, array):
        if ".label." in str(path):
            raise OSError(28, "No space left on device")
        save(path, np.zeros_like(array))  # must not be mistaken for the case

    monkeypatch.setattr(files.np, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        load_cases(manifest, [case], PREPROCESSING, cache)
    assert not entries(cache) and not list(cache.glob(".tmp-*"))
    monkeypatch.setattr(files.np, "save", save)
    (found,) = load_cases(manifest, [case], PREPROCESSING, cache)
    assert np.ptp(found.image) == 2


def test_an_unwritable_cache_gives_one_line(manifest, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot be written") as caught:
        load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_file_system_without_locks_is_warned_about_once(manifest, tmp_path, monkeypatch, caplog):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    entry = next((tmp_path / "cache").glob("*.json"))
    entry.unlink()
    unfinished = entry.with_name(f".tmp-1-{entry.stem}.image.npy")
    unfinished.touch()
    assert len(load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")) == len(NAMES)
    assert entry.exists() and unfinished.exists(), "another process may be writing it"
    assert caplog.text.count("No locks available") == 1


@pytest.mark.slow
def test_placements_survive_the_disk(manifest, tmp_path):
    space = replace(PREPROCESSING, spacing=(1.0, 1.0, 4.0), crop="body", bias_correction=True)
    (found,) = load_cases(manifest, manifest.cases[:1], space, tmp_path / "cache")
    host, _ = read_case(manifest, manifest.cases[0])
    expected = space.apply_image(host.array, host.affine)[1]
    assert asdict(found.placement) == asdict(expected)
    assert found.placement.bias is not None and found.placement.box is not None and found.placement.coarse == 2
