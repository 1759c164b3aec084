"""Writes files and folders atomically: they are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from medaug.errors import UserError
from medaug.inputs import opened

log = logging.getLogger(__name__)

# EFBIG comes from a limit on the size of files (ulimit -f).
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
}


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the disk while writing `path` into one line.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    try:
        yield
    except OSError as error:
        refused = refusal(error, path)
        if refused is None:
            raise
        raise refused from error


def refusal(error: OSError, path: str | os.PathLike[str] | None = None) -> UserError | None:
    """Return the error for a full disk or a folder that is not writable; None if the error is of another kind.

    Args:
        error: the error that the system raised.
        path: the file to be written; None: the file that the error names.
    """
    named = path if path is not None else error.filename
    # numpy reports a short write only in words ("requested and written"), without an errno.
    if error.errno in _FULL or "requested and" in str(error):
        where = "" if named is None else f"{os.fspath(named)}: "
        return UserError(f"{where}the disk is full", "free some space and run the same command again")
    if named is not None and error.errno in _NOT_WRITABLE:
        return UserError(f"cannot be written ({error.strerror})", "choose another folder", path=named)
    return None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` on success and removed on failure.

    File and folder are synced to the disk, so that not even a power cut leaves a partial file. The temporary name keeps
    the suffixes of `path`, because writers choose a format by them. The first write to a folder also removes temporary
    files that killed processes of this machine left there.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers_once(path.parent)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as JSON in UTF-8, atomically.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: object) -> str:
    """Return the text that `write_json` writes; it can always be encoded as UTF-8."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    # A path that is not valid UTF-8 holds lone surrogates; escaped as \udcfc they are valid JSON and round-trip.
    return text.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary folder beside `target`, to be created, filled, and renamed by `put_folder`.

    If it still exists at the end, it is removed. Temporary folders that killed processes of this machine left are
    removed too; those that may belong to a process of another machine or container are kept, with a warning.
    """
    for leftover in target.parent.glob(f".tmp-*-{target.name}"):
        match = re.fullmatch(rf"\.tmp-([0-9a-f]{{8}})-\d+-{re.escape(target.name)}", leftover.name)
        if match and match[1] != _machine():
            log.warning(
                "%s: left by a process of another machine or container, or before a restart; remove it "
                "if no such process is running",
                leftover,
            )
    _remove_leftovers(target.parent)
    temporary = _temporary(target)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a folder if it does not exist; remove it at the end if it is empty and was created here.

    Raises:
        UserError: it cannot be created.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for path in new:
                path.rmdir()


def put_folder(temporary: Path, target: Path) -> None:
    """Sync all files of a folder to the disk and rename it to `target`, which must not exist.

    Raises:
        UserError: the disk is full, the folder is not writable, or `target` was created meanwhile and holds files.
    """
    with writing(target):
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        os.rename(temporary, target)
        sync(target.parent)


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold identical files under the same names."""
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
        for folder in (one, other)
    ]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def sync(path: Path) -> None:
    """Wait until a file, or the directory entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        UserError: it cannot be read, or is a folder or pipe.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{_machine()}-{os.getpid()}-{path.name}")


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders whose process is dead; it is not known whether those of other machines are."""
    for leftover in folder.glob(f".tmp-{_machine()}-*"):
        match = re.match(r"\.tmp-[0-9a-f]{8}-(\d+)-", leftover.name)
        if match is None or _runs(int(match[1])):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


_remove_leftovers_once = functools.cache(_remove_leftovers)


@functools.cache
def _machine() -> str:
    """Identify the scope of process ids: a hash of the running kernel and the process namespace."""
    parts = [os.uname().nodename]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # alive, but of another user
        return True
    return True
