"""Image files with the same content under two names, found without reading voxels."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medaug.cohort import Case, LabelSchema, Manifest
from medaug.imaging.nifti import write_volume
from medaug.preflight import check, copies
from medaug.preflight.copies import find_same_files

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))


def cohort(root: Path, *files: str, subjects: dict[str, str] | None = None) -> Manifest:
    cases = [Case(file.split(".")[0], (file,), None, (subjects or {}).get(file, file)) for file in files]
    return Manifest("cohort", "", ("T1",), SCHEMA, tuple(cases), str(root))


@pytest.fixture
def root(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.nii.gz", "b.nii.gz", "c.nii", "d.nii"):
        write_volume(tmp_path / name, rng.integers(0, 900, (9, 8, 7)).astype(np.int16), np.eye(4))
    return tmp_path


def found(manifest: Manifest) -> list[tuple[str, str, str]]:
    return [(finding.case, finding.severity, finding.code) for finding in find_same_files(manifest)]


def test_different_scans_are_not_found(root):
    assert found(cohort(root, "a.nii.gz", "b.nii.gz", "c.nii", "d.nii")) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copy", "link", "symlink", "recompress", "unpack"])
def test_one_scan_under_two_names_is_an_error(root, how):
    target = "e.nii" if how == "unpack" else "e.nii.gz"
    source, path = root / "a.nii.gz", root / target
    if how == "copy":
        shutil.copy(source, path)
    elif how == "link":
        os.link(source, path)
    elif how == "symlink":
        path.symlink_to(source)
    elif how == "recompress":
        path.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1, mtime=5))
        assert path.read_bytes() != source.read_bytes()
    else:
        path.write_bytes(gzip.decompress(source.read_bytes()))
    names = ("a.nii.gz", "b.nii.gz", "c.nii", "d.nii", target)
    assert found(cohort(root, *names)) == [("e", "error", "same-content")]
    one_person = dict.fromkeys(("a.nii.gz", target), "person")
    assert found(cohort(root, *names, subjects=one_person)) == [("e", "warning", "same-content")]
    report = check(cohort(root, *names), "headers", workers=1)
    assert [f.case for f in report.findings if f.code == "same-content"] == ["e"]


def test_an_equal_checksum_is_not_enough(root):
    """Different content with a forged trailer, equal to that of a scan."""
    trailer = (root / "a.nii.gz").read_bytes()[-8:]
    (root / "e.nii.gz").write_bytes((root / "b.nii.gz").read_bytes()[:-8] + trailer)
    assert found(cohort(root, "a.nii.gz", "e.nii.gz")) == []


def test_unreadable_files_are_skipped(root):
    (root / "short.nii.gz").write_bytes(b"\x1f\x8b")
    (root / "cut.nii.gz").write_bytes((root / "a.nii.gz").read_bytes()[:100])
    os.mkfifo(root / "pipe.nii")
    assert found(cohort(root, "a.nii.gz", "short.nii.gz", "cut.nii.gz", "pipe.nii", "missing.nii.gz")) == []


def test_only_candidates_are_read_completely(root, monkeypatch):
    read = []
    monkeypatch.setattr(copies, "_content_hash", lambda path: read.append(path) or "")
    found(cohort(root, "a.nii.gz", "b.nii.gz", "c.nii"))
    assert read == []
