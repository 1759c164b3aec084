"""Files of the cache of model-space scans: what an entry is called, who writes it, and when it counts.

An entry is `<key>.image.npy`, `<key>.label.npy` (where there is a label) and `<key>.json`, which is written last and
says that the others are whole. Any number of processes may use one folder, and any of them may be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from medaug import locks
from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.inputs import opened, read_json
from medaug.progress import track

_INDEX = "files.index"
_RESTORE = "restore the file or correct the manifest"
# A file written twice within the clock's grain keeps its time of change: what is younger is not remembered.
_SETTLED_NS = 2_000_000_000


def content_digests(paths: Iterable[Path], cache: Path) -> dict[Path, str]:
    """SHA-256 of each file's bytes, hexadecimal.

    Digests are remembered in the cache under a hash of path, size and time of change, so that an unchanged file is
    read once and no path is written down.

    Raises:
        UserError: a file is missing or unreadable.
    """
    index = cache / _INDEX
    known = _read_json(index)
    found, new = {}, {}
    unread = []
    for path in dict.fromkeys(paths):
        with opened(path, _RESTORE) as file:
            stat = os.fstat(file.fileno())
        identity = f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
        token = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        if token in known:
            found[path] = str(known[token])
        else:
            unread.append((path, token, time.time_ns() - stat.st_mtime_ns > _SETTLED_NS))
    for path, token, settled in track(unread, "hashing files"):
        with opened(path, _RESTORE) as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
        if settled:
            new[token] = found[path]
    if new:
        with locked(index, wait=True), atomic_write(index) as temporary:
            temporary.write_text(json.dumps(_read_json(index) | new))
    return found


@contextlib.contextmanager
def locked(stem: Path, wait: bool) -> Iterator[bool]:
    """Hold an entry against other processes; yields whether it is held. The lock dies with its process.

    Args:
        stem: the entry's path without suffix.
        wait: until it is free; otherwise False is yielded at once where another process holds it.
    """
    with locks.locked(stem.with_suffix(".lock"), wait) as lock:
        if lock is not None and lock.certain:
            for leftover in stem.parent.glob(f".tmp-*-{stem.name}.*"):  # of a killed process: the lock is ours
                leftover.unlink(missing_ok=True)
        yield lock is not None


def read_entry(stem: Path, memory: bool) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, dict[str, Any]] | None:
    """Image, label and what else was written of an entry; None where it is absent, unfinished or damaged.

    Args:
        stem: the entry's path without suffix.
        memory: read the arrays into memory; otherwise they are mapped from the disk. Read-only either way.
    """
    about = _read_json(stem.with_suffix(".json"))
    try:
        image, label = (
            _load(stem.with_suffix(f".{name}.npy"), about[name], dtype, memory) if about[name] is not None else None
            for name, dtype in (("image", np.float32), ("label", np.uint8))
        )
    except (UserError, KeyError, OSError, ValueError, EOFError):
        return None
    return None if image is None else (image, label, about)


def write_entry(stem: Path, image: NDArray[np.float32], label: NDArray[np.uint8] | None, about: dict[str, Any]) -> None:
    """Write an entry, to be called by whoever holds its lock. `about` is JSON, without "image" and "label"."""
    for name, array in (("image", image), ("label", label)):
        if array is not None:
            with atomic_write(stem.with_suffix(f".{name}.npy")) as temporary:
                np.save(temporary, array)
    shapes = {"image": list(image.shape), "label": None if label is None else list(label.shape)}
    with atomic_write(stem.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about | shapes))


def add_owner(stem: Path, owner: dict[str, str]) -> None:
    """Add {"case", "subject"} to the entry's "owners": two cases may have one content."""
    with locked(stem, wait=True):
        about = _read_json(stem.with_suffix(".json"))
        if owner not in about["owners"]:
            about["owners"].append(owner)
            with atomic_write(stem.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(about))


def _load(path: Path, shape: list[int], dtype: type[np.generic], memory: bool) -> NDArray[Any]:
    with opened(path) as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:  # np.load also takes archives
            raise ValueError(f"{path}: not an array")
    mapped = np.load(path, mmap_mode="r")  # nothing is set aside for a shape that the file cannot hold
    if list(mapped.shape) != shape or mapped.dtype != dtype:
        raise ValueError(f"{path}: {mapped.dtype} of shape {mapped.shape}")
    array = np.array(mapped) if memory else mapped
    array.flags.writeable = False
    return array


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError:
        return {}
