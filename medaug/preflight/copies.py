"""Image files with one content, found without reading voxels where sizes and check sums already differ."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from medaug.cohort.findings import Finding
from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.inputs import opened

_CHUNK = 1 << 20
_LARGEST = 2 << 30  # bytes, unpacked: no volume that is read is larger
_GZIP_TRAILER = 8


def find_same_files(manifest: Manifest) -> Iterator[Finding]:
    """Find image files of different cases that hold the same bytes once they are unpacked.

    A compressed file ends with the check sum and the length of its content, so that most are told apart by their last
    eight bytes. Uncompressed files of one size are read through. A copy with another header has other bytes.
    """
    owners: dict[Path, Case] = {}
    for case in manifest.cases:
        for path in manifest.image_paths(case):
            owners.setdefault(path, case)
    for paths in _candidates(owners):
        first: dict[str, Path] = {}
        for path in paths:
            try:
                one = first.setdefault(_content(path), path)
            except (UserError, OSError, EOFError, zlib.error):
                continue  # a finding of its own
            case, other = owners[path], owners[one]
            if case.name != other.name:
                yield _finding(case, path, other, one)


def _finding(case: Case, path: Path, other: Case, its: Path) -> Finding:
    what = f"{path.name} holds the same bytes as {its.name} of {other.name}"
    if case.subject == other.subject:
        return Finding(case.name, "warning", "same-content", what, "leave one of the two out")
    what += ", another subject" + ("" if case.split == other.split else f" in the split {other.split}")
    return Finding(case.name, "error", "same-content", what, "leave one of the two out, or give both the same subject")


def _candidates(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Groups of files whose contents have one length (modulo 2^32) and one CRC-32."""
    packed: dict[tuple[int, int], list[Path]] = defaultdict(list)
    plain: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            with opened(path) as file:
                if path.suffix.lower() == ".gz":
                    file.seek(-_GZIP_TRAILER, 2)
                    crc, length = struct.unpack("<II", file.read(_GZIP_TRAILER))
                    packed[length, crc].append(path)
                else:
                    plain[file.seek(0, 2) % 2**32].append(path)
        except (UserError, OSError, struct.error):
            continue  # missing, empty or cut short: a finding of its own
    lengths = {length for length, _ in packed}
    for length, members in plain.items():
        for path in members if len(members) > 1 or length in lengths else ():
            with opened(path) as file:
                packed[length, _crc(file)].append(path)
    yield from (members for members in packed.values() if len(members) > 1)


def _content(path: Path) -> str:
    digest, total = hashlib.sha256(), 0
    with opened(path) as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
        for chunk in _chunks(stream):
            digest.update(chunk)
            total += len(chunk)
            if total > _LARGEST:
                raise EOFError(path)
    return digest.hexdigest()


def _crc(file: IO[bytes]) -> int:
    file.seek(0)
    crc = 0
    for chunk in _chunks(file):
        crc = zlib.crc32(chunk, crc)
    return crc


def _chunks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    return itertools.takewhile(bool, (file.read(_CHUNK) for _ in itertools.count()))
