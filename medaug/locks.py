"""Locks on files: only one process can hold a lock, and it is released when that process ends."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from medaug.errors import UserError
from medaug.files import made_folder, refusal

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds.

    Attributes:
        path: the file that is locked.
        certain: False on a file system without locks, where another process may hold it as well.
    """

    path: Path
    certain: bool
    _lock: FileLock

    def release(self, remove: bool = False) -> None:
        """Release the lock; with `remove`, delete its file first. A second call does nothing, nor one in a fork."""
        if self._lock.is_locked or not self.certain:
            if remove:
                self.path.unlink(missing_ok=True)
            self._lock.release()


def acquire(path: Path, wait: bool = False) -> Lock | None:
    """Lock a file, creating it if needed; None if another process holds the lock.

    The lock ends with this process. Children that it forks do not keep it.

    Args:
        path: the lock file.
        wait: wait until the lock is free.

    Raises:
        UserError: the file cannot be written, or another process held the lock for an hour of waiting.
    """
    timeout = _LONGEST_WAIT_S if wait else 0
    lock = FileLock(path, timeout, thread_local=False, poll_interval=0.1, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        if not wait:
            return None
        raise UserError(
            f"another process has held it for {_LONGEST_WAIT_S / 60:.0f} minutes",
            "check whether that process still works, stop it if not, and run the same command again",
            path=path,
        ) from None
    except OSError as error:
        if refused := refusal(error, path.parent):
            raise refused from error
        _warn_of_no_locks(path.parent, error.strerror or str(error))
        return Lock(path, False, lock)
    return Lock(path, True, lock)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[Lock | None]:
    """Hold a lock during a block, see `acquire`, and remove its file at the end; yields None if another holds it."""
    lock = acquire(path, wait)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release(remove=True)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file while it is read, changed and written.

    Raises:
        UserError: another process is writing it, or its folder is not writable.
    """
    with made_folder(path.parent), locked(path.with_name(f".{path.name}.lock")) as lock:
        if lock is None:
            raise UserError("another process is writing it", "run the same command again when it has ended", path=path)
        yield


def is_free(path: Path) -> bool | None:
    """Whether no process holds a lock on a file, which need not exist; None if that is unknown."""
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


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    log.warning("%s: no locks on this file system (%s); do not run the same command twice at once", folder, reason)
