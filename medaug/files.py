"""Files and folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from medaug.errors import UserError

# EFBIG is what a limit on the size of files says (ulimit -f).
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
}


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one line what the disk refuses of `path`.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        # numpy says a short write in words, without a number.
        if error.errno in _FULL or "requested and" in str(error):
            raise UserError(f"{path}: the disk is full; free some space and run the same command again") from error
        if error.errno in _NOT_WRITABLE:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place on success and vanishes on failure.

    The temporary name keeps the suffixes of `path`, because writers choose a format by them.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield the path of a folder beside `target`, to be made, filled, and renamed to `target` as the last step.

    What is left of it at the end is removed, and so is what killed processes left of theirs.
    """
    for leftover in target.parent.glob(f".tmp-*-{target.name}"):
        match = re.fullmatch(rf"\.tmp-(\d+)-{re.escape(target.name)}", leftover.name)
        if match and not _runs(int(match[1])):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # alive, and somebody else's
        return True
    return True
