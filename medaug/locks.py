"""Locks on files: held by one process at a time, and gone with it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medaug.errors import UserError
from medaug.files import made_folder, writing

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 3600.0
_held: set[int] = set()


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds.

    Attributes:
        path: the file that is locked.
        handle: its open descriptor.
        certain: False on a file system without locks, where another process may hold it as well.
    """

    path: Path
    handle: int
    certain: bool = True

    def release(self, remove: bool = False) -> None:
        """Let go of the lock; with `remove`, delete its file first. A second call does nothing."""
        if self.handle in _held:
            _held.remove(self.handle)
            if remove:
                self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                os.close(self.handle)


def take(path: Path, wait: bool = False) -> Lock | None:
    """Lock a file, which is made if absent; None where another process holds it.

    The lock ends with this process. Children that it forks do not keep it.

    Args:
        path: of the lock file.
        wait: until it is free.

    Raises:
        UserError: the file cannot be written, or another process has held it for an hour of waiting.
    """
    end = time.monotonic() + _LONGEST_WAIT_S
    while True:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if not wait:
                return None
            if time.monotonic() > end:
                raise UserError(
                    f"{path}: another process has held it for {_LONGEST_WAIT_S / 60:.0f} minutes; see whether that "
                    "process still works, stop it if not, and run the same command again"
                ) from None
            time.sleep(0.1)
            continue
        except OSError as error:
            _warn_of_no_locks(path.parent, error.strerror or str(error))
            _held.add(handle)
            return Lock(path, handle, certain=False)
        if _is_named(handle, path):
            _held.add(handle)
            return Lock(path, handle)
        os.close(handle)  # its last holder removed it between our open and our lock


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[Lock | None]:
    """Hold a lock for the time of a block, as `take`, and remove its file at the end; None where another holds it."""
    lock = take(path, wait)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release(remove=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file, from before it is read until it is written, against other processes that would write it too.

    Raises:
        UserError: another process holds it, or its folder cannot be written.
    """
    with made_folder(path.parent), locked(path.with_name(f".{path.name}.lock")) as lock:
        if lock is None:
            raise UserError(f"{path}: another process is writing it; run the same command again when it has ended")
        yield


def is_free(path: Path) -> bool | None:
    """Whether no process holds a lock on a file, which need not exist; None where that cannot be told."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        os.close(handle)
    return True


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    log.warning("%s: no locks on this file system (%s); do not run the same command twice at once", folder, reason)


def _forget() -> None:
    """In a forked child: close the inherited descriptors, or a lock would outlive the process that took it."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
