"""The files of the cache of preprocessed scans: their names, their locks, and when an entry is complete.

An entry is `<key>.image.npy`, `<key>.label.npy` (if there is a label) and `<key>.json`. The JSON file is written last,
so an entry with one is complete, and holds the digests of the others. Any number of processes may use one folder, and
any of them may be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from medaug import locks
from medaug.errors import UserError
from medaug.files import atomic_write, file_sha256, write_json
from medaug.inputs import opened, read_json
from medaug.progress import track

_INDEX = "files.index"
_RESTORE = "restore the file or correct the manifest"
# Two writes within the clock's resolution give the same times, so the digest of a newer file is not stored.
_SETTLED_NS = 2_000_000_000


def content_digests(paths: Iterable[Path], cache: Path) -> dict[Path, str]:
    """SHA-256 of each file's bytes, hexadecimal.

    Digests are stored in the cache under a hash of path, inode, size, mtime and ctime, so that an unchanged file is
    read only once and no path is written down. Programs can set mtime but not ctime, so a rewritten file is read again.

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
        changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
        identity = f"{os.path.abspath(path)}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        token = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        if token in known:
            found[path] = str(known[token])
        else:
            unread.append((path, token, time.time_ns() - changed > _SETTLED_NS))
    for path, token, settled in track(unread, "hashing files"):
        with opened(path, _RESTORE) as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
        if settled:
            new[token] = found[path]
    if new:
        with locked(index, wait=True):
            write_json(index, _read_json(index) | new)
    return found


@contextlib.contextmanager
def locked(stem: Path, wait: bool) -> Iterator[bool]:
    """Lock an entry; yields whether this process holds the lock. The lock ends with its process.

    Args:
        stem: the entry's path without suffix.
        wait: wait until the lock is free; otherwise yield False at once if another process holds it.
    """
    with locks.locked(stem.with_suffix(".lock"), wait) as lock:
        if lock is not None and lock.certain:
            for leftover in stem.parent.glob(f".tmp-*-{stem.name}.*"):  # left by a killed process: we hold the lock
                leftover.unlink(missing_ok=True)
        yield lock is not None


def read_entry(stem: Path, memory: bool) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, dict[str, Any]] | None:
    """Read the image, label and JSON values of an entry; None if it is absent, incomplete or unreadable.

    Digests are not checked here: see `refuse_changed`.

    Args:
        stem: the entry's path without suffix.
        memory: read the arrays into memory; otherwise memory-map them. They are read-only either way.
    """
    about = _read_json(stem.with_suffix(".json"))
    try:
        if about["digests"].keys() != {"image", "label", "json"}:
            return None
        image, label = (
            _load(stem.with_suffix(f".{name}.npy"), about[name], dtype, memory) if about[name] is not None else None
            for name, dtype in (("image", np.float32), ("label", np.uint8))
        )
    except (UserError, AttributeError, KeyError, OSError, TypeError, ValueError, EOFError):
        return None
    return None if image is None else (image, label, about)


def write_entry(stem: Path, image: NDArray[np.float32], label: NDArray[np.uint8] | None, about: dict[str, Any]) -> None:
    """Write an entry; the caller must hold its lock. `about` holds JSON values, without "image" and "label"."""
    digests: dict[str, str | None] = {"image": None, "label": None}
    for name, array in (("image", image), ("label", label)):
        if array is not None:
            with atomic_write(stem.with_suffix(f".{name}.npy")) as temporary:
                np.save(temporary, array)
                digests[name] = file_sha256(temporary)
    shapes = {"image": list(image.shape), "label": None if label is None else list(label.shape)}
    content = about | shapes | {"digests": digests}
    digests["json"] = _json_digest(content)
    write_json(stem.with_suffix(".json"), content)


def refuse_changed(stems: Mapping[str, Path], cache: Path) -> dict[str, str]:
    """Check entries against the digests that were written with them; each file is read once after it was written.

    Args:
        stems: case name to the path of its entry, without suffix.
        cache: folder of the entries.

    Returns:
        case name to the digest of its image in model space.

    Raises:
        UserError: an entry was changed or removed after it was written.
    """
    written: dict[str, dict[str, Any]] = {name: _read_json(stem.with_suffix(".json")) for name, stem in stems.items()}
    parts = {
        name: {
            part: stems[name].with_suffix(f".{part}.npy")
            for part in ("image", "label")
            if about.get("digests", {}).get(part) is not None
        }
        for name, about in written.items()
    }
    now = content_digests((path for files in parts.values() for path in files.values()), cache)
    for name, about in written.items():
        digests = about.get("digests", {})
        same = {part: now[path] == digests[part] for part, path in parts[name].items()}
        if "image" not in same or not all(same.values()) or _json_digest(about) != digests.get("json"):
            raise UserError(
                f"the preprocessed scan of {name} was changed after it was written",
                f"remove {stems[name]}.* to make it again, and find out what else writes there",
                path=stems[name],
            )
    return {name: str(about["digests"]["image"]) for name, about in written.items()}


def _json_digest(about: Mapping[str, Any]) -> str:
    """Digest of an entry's JSON without its owners, which may be added later."""
    content = {key: value for key, value in about.items() if key != "owners"}
    content["digests"] = {key: value for key, value in content["digests"].items() if key != "json"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def add_owner(stem: Path, owner: dict[str, str]) -> None:
    """Add {"case", "subject"} to the entry's "owners": two cases may have the same content."""
    with locked(stem, wait=True):
        about = _read_json(stem.with_suffix(".json"))
        if owner not in about["owners"]:
            about["owners"].append(owner)
            write_json(stem.with_suffix(".json"), about)


def _load(path: Path, shape: list[int], dtype: type[np.generic], memory: bool) -> NDArray[Any]:
    with opened(path) as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:  # np.load also accepts archives
            raise ValueError(f"{path}: not an array")
    try:
        mapped = np.load(path, mmap_mode="r")  # allocates no memory, even if the header claims a huge shape
    except (SyntaxError, tokenize.TokenError) as error:  # numpy parses the header as Python
        raise ValueError(f"{path}: {error}") from error
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
