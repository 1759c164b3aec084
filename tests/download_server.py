"""A local server that serves an archive and can misbehave, and checks of what was downloaded from it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from medaug.download import download_task
from medaug.errors import UserError

NAME = "Task04_Hippocampus"
FILES = {
    "dataset.json": b'{"name": "Hippocampus"}',
    "imagesTr/hippocampus_001.nii.gz": random.Random(1).randbytes(200_000),
    "imagesTr/hippocampus_003.nii.gz": random.Random(2).randbytes(100_001),
    "labelsTr/hippocampus_001.nii.gz": random.Random(3).randbytes(512),
}


def member(name: str, content: bytes = b"x", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def pack(*extra: tuple[tarfile.TarInfo, bytes], files: dict[str, bytes] = FILES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in [*(member(f"{NAME}/{name}", content) for name, content in files.items()), *extra]:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = pack()


@dataclass
class Server:
    """What the server sends and how it fails; `seen` are the requests, `sent` the bytes sent for each."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    honest: bool = True  # obeys If-Range
    sized: bool = True
    statuses: list[int] = field(default_factory=list)  # answers to the first requests
    cuts: list[int] = field(default_factory=list)  # bytes that the first connections deliver
    stalls: list[int] = field(default_factory=list)  # like cuts, but the connection stays open
    trickle: bool = False
    seen: list[dict[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append({"path": handler.path, **dict(handler.headers)})
        self.sent.append(0)
        number = len(self.sent) - 1
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return handler.send_error(status)
        start = 0
        requested = handler.headers.get("Range")
        fits = not self.honest or handler.headers.get("If-Range", self.etag) == self.etag
        if requested and self.ranges and fits:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.data):
                return handler.send_error(416)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        else:
            handler.send_response(200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.sized:
            handler.send_header("Content-Length", str(len(self.data) - start))
        handler.end_headers()
        body = self.data[start:]
        stall = bool(self.stalls)
        if self.stalls or self.cuts:
            body = body[: (self.stalls or self.cuts).pop(0)]
        step = 100 if self.trickle else 1 << 14
        with contextlib.suppress(OSError):
            for at in range(0, len(body), step):
                self.sent[number] += handler.wfile.write(body[at : at + step])
                if self.trickle and self.released.wait(0.05):
                    break
            handler.wfile.flush()
            if stall:
                self.released.wait(20)


def refused(folder: Path, mirror: str | None, name: str = NAME) -> str:
    with pytest.raises(UserError) as caught:
        download_task(name, folder, mirror)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_unpacked(folder: Path, others: frozenset[str] = frozenset()) -> None:
    target = folder / NAME
    found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == FILES
    assert set(os.listdir(folder)) == {NAME, *others}


def part(folder: Path) -> Path:
    return folder / f".{NAME}.tar.part"
