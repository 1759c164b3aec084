"""Finds image files with the same content; files whose sizes or checksums differ need not be read."""

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
_LARGEST = 2 << 30  # bytes after decompression; larger volumes cannot be read anyway
_GZIP_TRAILER = 8


def find_same_files(manifest: Manifest) -> Iterator[Finding]:
    """Find image files of different cases that hold the same bytes after decompression.

    A gzip file ends with the checksum and the length of its content, so the last eight bytes distinguish most files.
    Uncompressed files of equal size are read completely. A copy with a different header is not found here.
    """
    owners: dict[Path, Case] = {}
    for case in manifest.cases:
        for path in manifest.image_paths(case):
            owners.setdefault(path, case)
    for paths in _candidates(owners):
        first: dict[str, Path] = {}
        for path in paths:
            try:
                original = first.setdefault(_content_hash(path), path)
            except (UserError, OSError, EOFError, zlib.error):
                continue  # reported when the case is checked
            case, other = owners[path], owners[original]
            if case.name != other.name:
                what = f"{path.name} holds the same bytes as {original.name} of {other.name}"
                yield copy_finding(case, other, "same-content", what)


def copy_finding(case: Case, other: Case, code: str, what: str) -> Finding:
    """Return the finding that `case` is a copy of `other`: an error if their subjects differ, because splits leak."""
    if case.subject == other.subject:
        return Finding(case.name, "warning", code, what, "leave one of the two out")
    what += ", another subject" + ("" if case.split == other.split else f" in the split {other.split}")
    return Finding(case.name, "error", code, what, "leave one of the two out, or give both the same subject")


def _candidates(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Group files whose contents have the same length (modulo 2^32) and the same CRC-32."""
    groups: dict[tuple[int, int], list[Path]] = defaultdict(list)
    uncompressed: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            with opened(path) as file:
                if path.suffix.lower() == ".gz":
                    file.seek(-_GZIP_TRAILER, 2)
                    crc, length = struct.unpack("<II", file.read(_GZIP_TRAILER))
                    groups[length, crc].append(path)
                else:
                    uncompressed[file.seek(0, 2) % 2**32].append(path)
        except (UserError, OSError, struct.error):
            continue  # missing, empty or cut short, which is reported when the case is checked
    lengths = {length for length, _ in groups}
    for length, members in uncompressed.items():
        for path in members if len(members) > 1 or length in lengths else ():
            with opened(path) as file:
                groups[length, _crc(file)].append(path)
    yield from (members for members in groups.values() if len(members) > 1)


def _content_hash(path: Path) -> str:
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
