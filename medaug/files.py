"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from medaug.errors import UserError

# EFBIG is what a limit on the size of files says (ulimit -f).
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


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
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # numpy says a short write in words, without a number.
        if error.errno in _FULL or "requested and" in str(error):
            raise UserError(f"{path}: the disk is full; free some space and run the same command again") from error
        if error.errno in _NOT_WRITABLE:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
