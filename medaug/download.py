"""Downloads tasks of the Medical Segmentation Decathlon by name, checks and unpacks them.

The process may be killed at any point; the next call continues where it stopped. Bytes are appended to
`.<Task>.tar.part`; size and version of the whole file, as the server stated them, are in `.<Task>.tar.json`. A complete
archive is checked by its MD5 and unpacked into `.tmp-<machine>-<pid>-<Task>`, which is renamed as the last step.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from rich.filesize import decimal

from medaug.errors import UserError
from medaug.files import made_folder, put_folder, temporary_folder, writing
from medaug.locks import locked
from medaug.progress import track, track_bytes

log = logging.getLogger(__name__)

HOMEPAGE = "http://medicaldecathlon.com"
# Address and MD5 of the archives: monai.apps.DecathlonDataset of MONAI 1.6.1 (monai/apps/datasets.py).
ADDRESS = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}

TIMEOUT_S = 30.0
# A connection that delivers less than this within TIMEOUT_S counts as broken: it would take for ever.
TRICKLE_BYTES = 30_000
# Waits before the next attempts. After PROGRESS_BYTES of new data they start from the first again.
WAITS_S = (1, 3, 10, 30)
PROGRESS_BYTES = 1_000_000
CHUNK_BYTES = 1 << 20
# HTTP statuses after which a retry may succeed.
_BUSY = {408, 429, 500, 502, 503, 504}


class _RetryError(Exception):
    """A connection failed, but may work the next time.

    Attributes:
        connected: whether a server had answered.
    """

    def __init__(self, reason: object, connected: bool = True) -> None:
        super().__init__(str(getattr(reason, "strerror", None) or reason or type(reason).__name__))
        self.connected = connected


def download_task(name: str, folder: Path, mirror: str | None = None) -> Path:
    """Download a task and unpack it in `folder`, unless it exists there; nothing is overwritten.

    Args:
        name: a key of `MD5`, such as "Task04_Hippocampus".
        folder: created if it does not exist; it must have space for the archive and the unpacked task together.
        mirror: http or https address of a folder with `<name>.tar`; None: `ADDRESS`.

    Returns:
        `folder/<name>`, which contains `dataset.json`.

    Raises:
        UserError: the name or address is not valid; the connection fails repeatedly; there is too little space; the
            archive is damaged, not the published one, or not safe to unpack; or another process is downloading it.
    """
    if name not in MD5:
        close = difflib.get_close_matches(name.lower(), (known.lower() for known in MD5), n=1, cutoff=0.5)
        nearest = [known for known in MD5 if known.lower() in close]
        remedy = f"did you mean {nearest[0]}?" if nearest else f"the tasks are {', '.join(MD5)}"
        raise UserError(f"download={name}: no such task", remedy)
    url = f"{ADDRESS if mirror is None else _checked(mirror)}/{name}.tar"
    target = folder / name
    part = folder / f".{name}.tar.part"
    with made_folder(folder), locked(folder / f".{name}.lock") as lock:
        if lock is None:
            raise UserError("another process is downloading this task there", "wait until it has ended", path=folder)
        if (target / "dataset.json").exists():
            log.info("%s: exists already, nothing to do", target)
            return target
        if os.path.lexists(target):
            raise UserError("exists but holds no dataset.json", "move it away or choose another folder", path=target)
        _fetch(url, part)
        _check_space(folder, part.stat().st_size)
        with open(part, "rb") as archive:
            digest = hashlib.md5(usedforsecurity=False)
            for chunk in track_bytes(_read(archive), "checking", part.stat().st_size):
                digest.update(chunk)
        if digest.hexdigest() != MD5[name]:
            _discard(part)
            raise UserError(
                f"{url}: not the published archive (MD5 {digest.hexdigest()}, not {MD5[name]}), and removed",
                "run the same command again or choose another mirror",
            )
        try:
            _unpack(part, target)
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            _discard(part)
            raise UserError(
                f"{url}: cannot be unpacked ({error}), and removed", f"get {name}.tar from {HOMEPAGE} or another mirror"
            ) from error
        _discard(part)
    log.info("%s: fetched and unpacked", target)
    return target


def _checked(mirror: str) -> str:
    """Check an address before anything is sent, without quoting passwords; return it without a trailing slash."""
    try:
        parts = urlsplit(mirror)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise UserError("mirror: not an address", "give one like https://host/folder") from None
    if parts.username is not None:
        raise UserError(
            "mirror: user names and passwords in the address are not supported", "fetch the archive by hand"
        )
    if not valid or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", mirror):
        raise UserError(f"mirror={mirror!r}: not the address of a folder", "give one like https://host/folder")
    return mirror.rstrip("/")


def _fetch(url: str, part: Path) -> None:
    """Append to `part` until it is complete, over several connections if needed."""
    waits, cuts, best = iter(WAITS_S), 0, _size(part)
    by_hand = f"get {_archive(url)} by hand from {HOMEPAGE} and unpack it in {part.parent}"
    while True:
        try:
            return _resume(url, part)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and _size(part):
                _discard(part)  # the server's file is shorter than ours
                continue
            raise UserError(f"{url}: HTTP status {error.code} {error.reason}", by_hand) from error
        except _RetryError as cut:
            if not cuts and not cut.connected:
                raise UserError(f"{url}: no connection ({cut})", by_hand) from cut
            if _size(part) - best >= PROGRESS_BYTES:
                waits = iter(WAITS_S)
            cuts, best = cuts + 1, max(best, _size(part))
            if (wait := next(waits, None)) is None:
                have = f"{decimal(_size(part))} are downloaded; run the same command again to continue"
                raise UserError(
                    f"{url}: the connection failed {cuts} times, last with: {cut}",
                    have if _size(part) else by_hand,
                ) from cut
            log.warning("%s: %s; trying again in %d s", url, cut, wait)
            time.sleep(wait)


def _resume(url: str, part: Path) -> None:
    """Download what `part` lacks over one connection.

    Raises:
        _RetryError: the connection failed, or the downloaded part is of another version.
        urllib.error.HTTPError: the server refuses, and a retry would not help.
    """
    about = _about(part)
    try:
        known: dict[str, Any] = json.loads(about.read_bytes())
        have = _size(part)
    except (OSError, ValueError):
        known, have = {}, 0
    if have and have == known["size"]:
        return
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known["validator"] is not None:
            request.add_header("If-Range", known["validator"])
    with _open(request) as response:
        stated: dict[str, Any] = {"validator": _validator(response.headers), "size": response.length}
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            stated["size"] = known.get("size")
            # A server may not support If-Range: start again if its answer does not fit the downloaded part.
            expected = f"bytes {have}-{known['size'] - 1}/{known['size']}" if have else ""
            if stated != known or response.headers.get("Content-Range") != expected:
                _discard(part)
                raise _RetryError("the file has changed and is downloaded again")
        elif have:
            log.warning("%s: the file has changed or cannot be resumed; downloading it again", url)
            have = 0
        size = stated["size"]
        if not size:
            raise UserError(f"{url}: the server does not state its size", "choose another mirror")
        _check_space(part.parent, 2 * size - have)
        with writing(part), open(part, "ab" if have else "wb") as file:
            # After the old bytes are removed and before new ones are written.
            about.write_text(json.dumps(stated))
            for chunk in track_bytes(_received(response), _archive(url), size, have):
                file.write(chunk)
    if _size(part) < size:
        raise _RetryError("closed by the other side before the end")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _BUSY:
            raise _RetryError(f"HTTP status {error.code} {error.reason}") from error
        raise
    except urllib.error.URLError as error:
        raise _RetryError(error.reason, connected=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise _RetryError(error) from error


def _validator(headers: Message) -> str | None:
    """Return the value for If-Range, for which RFC 9110, 13.1.5, does not allow weak tags."""
    tag = headers.get("ETag")
    return tag if tag is not None and not tag.startswith("W/") else headers.get("Last-Modified")


def _received(response: http.client.HTTPResponse) -> Iterator[bytes]:
    since, count = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _RetryError(error) from error
        if not chunk:
            return
        yield chunk
        count += len(chunk)
        if time.monotonic() - since > TIMEOUT_S:
            if count < TRICKLE_BYTES:
                raise _RetryError(f"only {count} bytes in {TIMEOUT_S:g} s")
            since, count = time.monotonic(), 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{decimal(needed)} are needed to download and unpack, but {decimal(free)} are free",
            "free some space or choose another folder",
            path=folder,
        )


def _unpack(part: Path, target: Path) -> None:
    """Write the archive's regular files into a folder beside `target`, and rename that to `target`.

    Modes, owners and times in the archive are ignored; folders without files are not created.

    Raises:
        tarfile.TarError: the archive is damaged, or contains members that a task does not need.
        UserError: the disk is full.
    """
    # Tasks are uncompressed archives ("r:"), so the content cannot be larger than the archive.
    with (
        open(part, "rb") as archive,
        tarfile.open(fileobj=archive, mode="r:") as tar,
        writing(target),
        temporary_folder(target) as temporary,
    ):
        members = _checked_members(tar, target.name, part.stat().st_size)
        for path, member in track(members.items(), "unpacking"):
            content = tar.extractfile(member)
            assert content is not None
            out = temporary.joinpath(*path.parts[1:])
            out.parent.mkdir(parents=True, exist_ok=True)
            with open(out, "xb") as file:
                shutil.copyfileobj(content, file, CHUNK_BYTES)
        put_folder(temporary, target)


def _checked_members(tar: tarfile.TarFile, name: str, size: int) -> dict[PurePosixPath, tarfile.TarInfo]:
    """Check all members before any is written; return the regular files by path, which begins with `name`."""
    members: dict[PurePosixPath, tarfile.TarInfo] = {}
    total = 0
    for member in tar:
        path = PurePosixPath(member.name)
        if any(part.startswith("._") for part in path.parts):  # metadata that macOS adds
            continue
        total += member.size
        if path.is_absolute() or ".." in path.parts:
            raise tarfile.TarError(f"{member.name!r} leads out of the folder")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise tarfile.TarError(f"{member.name!r} is a link, a device or the like")
        if path.parts and path.parts[0] != name:
            raise tarfile.TarError(f"{member.name!r} is not in {name}")
        if member.size < 0 or total > size:
            raise tarfile.TarError(f"{member.name!r} claims to be larger than the archive")
        if member.isreg():
            if path in members:
                raise tarfile.TarError(f"{member.name!r} occurs twice")
            members[path] = member
    # tarfile mistakes a damaged header for the end of the archive.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.TarError("damaged in the middle")
    if nested := members.keys() & {parent for path in members for parent in path.parents}:
        raise tarfile.TarError(f"{str(min(nested))!r} is both a file and a folder")
    if PurePosixPath(name, "dataset.json") not in members:
        raise tarfile.TarError("it holds no dataset.json")
    return members


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _archive(url: str) -> str:
    return url.rpartition("/")[2]


def _about(part: Path) -> Path:
    return part.with_suffix(".json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _about(part).unlink(missing_ok=True)
