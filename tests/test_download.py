from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug import download
from medaug.download import download_task
from medaug.errors import UserError
from medaug.files import _machine
from medaug.progress import track_bytes

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
    """What it serves and how badly; `seen` are the requests and how many bytes of the file each was sent."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    honest: bool = True  # minds If-Range
    sized: bool = True
    statuses: list[int] = field(default_factory=list)  # of the first requests
    cuts: list[int] = field(default_factory=list)  # bytes that the first connections bring
    stalls: list[int] = field(default_factory=list)  # as cuts, but the connection stays open
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
        asked = handler.headers.get("Range")
        fits = not self.honest or handler.headers.get("If-Range", self.etag) == self.etag
        if asked and self.ranges and fits:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
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


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(download, "WAITS_S", (0, 0, 0, 0))
    monkeypatch.setattr(download, "ADDRESS", "http://127.0.0.1:1/nothing-leaves-the-machine")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # type: ignore[arg-type]  # built anew with this environment
    running: list[tuple[Server, ThreadingHTTPServer]] = []

    def start(data: bytes = ARCHIVE, **behaviour: object) -> Server:
        server = Server(data, **behaviour)  # type: ignore[arg-type]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.address = f"http://127.0.0.1:{httpd.server_port}/msd"
        monkeypatch.setitem(download.MD5, NAME, hashlib.md5(data).hexdigest())
        running.append((server, httpd))
        return server

    yield start
    for server, httpd in running:
        server.released.set()
        httpd.shutdown()
        httpd.server_close()
    urllib.request.install_opener(None)  # type: ignore[arg-type]


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


def test_fetched_and_unpacked_without_what_macos_adds(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(
        pack(member(f"._{NAME}"), member(f"./._{NAME}"), member(f"{NAME}/imagesTr/._hippocampus_001.nii.gz"))
    )
    assert download_task(NAME, tmp_path / "new" / "folder", f"{server.address}/") == tmp_path / "new" / "folder" / NAME
    check_unpacked(tmp_path / "new" / "folder")
    assert [(r["path"], r.get("Range")) for r in server.seen] == [(f"/msd/{NAME}.tar", None)]


def test_existing_data_is_left_alone(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine.txt").write_text("mine")
    assert "holds no dataset.json" in refused(tmp_path, server.address)
    (tmp_path / NAME / "dataset.json").write_text("mine")
    assert download_task(NAME, tmp_path, server.address) == tmp_path / NAME
    assert {p.name: p.read_text() for p in (tmp_path / NAME).iterdir()} == {"mine.txt": "mine", "dataset.json": "mine"}
    assert os.listdir(tmp_path) == [NAME]
    assert server.seen == []


@pytest.mark.parametrize("word", ["Task04_Hipocampus", "task04_hippocampus", "hippocampus", "Task4_Hippocampus"])
def test_misspelt_name(tmp_path: Path, word: str) -> None:
    assert f"did you mean {NAME}?" in refused(tmp_path / "x", None, word)
    assert not (tmp_path / "x").exists()


def test_unknown_name_lists_all(tmp_path: Path) -> None:
    assert all(task in refused(tmp_path, None, "zzz") for task in download.MD5)


def test_addresses_and_checksums_are_those_of_monai() -> None:
    from monai.apps import DecathlonDataset

    assert DecathlonDataset.md5 == download.MD5
    assert {name: f"{download.ADDRESS}/{name}.tar" for name in download.MD5} == DecathlonDataset.resource


def test_cut_connections_resume_at_the_next_byte(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(cuts=[1, 70_000, 513, 100_000])
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert server.sent == [1, 70_000, 513, 100_000, len(ARCHIVE) - 170_514]
    assert [r.get("Range") for r in server.seen] == [None, *(f"bytes={n}-" for n in (1, 70_001, 70_514, 170_514))]
    assert [r.get("If-Range") for r in server.seen] == [None] + ['"one"'] * 4


def test_too_many_cuts_stop_and_the_same_command_resumes(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(cuts=[30_000] * 5)
    assert "the connection failed 5 times" in (said := refused(tmp_path, server.address))
    assert "150.0 kB are here; run the same command again to go on" in said
    assert not (tmp_path / NAME).exists()
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert sum(server.sent) == len(ARCHIVE)


def test_patience_is_renewed_by_new_bytes_only(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PROGRESS_BYTES", 10_000)
    server = serve(cuts=[20_000] * 12)
    download_task(NAME, tmp_path, server.address)
    assert len(server.seen) == 13
    again = serve(cuts=[20_000] * 12, ranges=False)
    # The first connection brought something new, the others the same bytes.
    assert "the connection failed 5 times" in refused(tmp_path / "again", again.address)
    assert again.sent == [20_000] * 5


def test_server_without_ranges_starts_again(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(cuts=[100_000, 200_000], ranges=False)
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert server.sent == [100_000, 200_000, len(ARCHIVE)]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_no_weak_tag_is_used(tmp_path: Path, serve: Callable[..., Server], tag: str | None) -> None:
    server = serve(cuts=[100_000], etag=tag, honest=False)
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert [r.get("If-Range") for r in server.seen] == [None, None]


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("shorter", [False, True])
def test_changed_file_is_downloaded_again(
    tmp_path: Path, serve: Callable[..., Server], honest: bool, shorter: bool
) -> None:
    files = {"dataset.json": FILES["dataset.json"], "imagesTr/old.nii.gz": random.Random(9).randbytes(400_000)}
    old = serve(pack(files=files), cuts=[390_000] + [0] * 4)
    refused(tmp_path, old.address)
    assert part(tmp_path).stat().st_size == 390_000
    server = serve(ARCHIVE if shorter else ARCHIVE + bytes(102_400), etag='"two"', honest=honest)
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert [r.get("Range") for r in server.seen] == ["bytes=390000-"] + [None] * (not honest)


def test_changed_file_without_a_tag_shows_by_its_size(tmp_path: Path, serve: Callable[..., Server]) -> None:
    old = serve(bytes(len(ARCHIVE) + 1), cuts=[100_000] + [0] * 4, etag=None)
    refused(tmp_path, old.address)
    server = serve(etag=None)
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert [r.get("Range") for r in server.seen] == ["bytes=100000-", None]


def test_not_found(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(statuses=[404])
    said = refused(tmp_path, server.address)
    assert said.startswith(
        f"{server.address}/{NAME}.tar: HTTP status 404 Not Found; get {NAME}.tar by hand from http://"
    )
    assert said.endswith(f"unpack it in {tmp_path}")
    assert len(server.seen) == 1
    assert os.listdir(tmp_path) == []


def test_416_without_a_range_is_an_answer(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(statuses=[416] * 9)
    assert "HTTP status 416" in refused(tmp_path, server.address)
    assert len(server.seen) == 1


def test_busy_server_is_retried(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(statuses=[503, 429, 500])
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    busy = serve(statuses=[503] * 9)
    assert "failed 5 times, last with: HTTP status 503 Service Unavailable; get" in refused(
        tmp_path / "b", busy.address
    )
    assert len(busy.seen) == 5


def test_waiting_times_grow(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    server = serve(statuses=[503] * 9)
    monkeypatch.setattr(download, "WAITS_S", (1, 3, 10, 30))
    monkeypatch.setattr(time, "sleep", waits.append)
    refused(tmp_path, server.address)
    assert waits == [1, 3, 10, 30]


def test_silent_server_times_out(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    server = serve(stalls=[100_000, 0])
    begun = time.monotonic()
    download_task(NAME, tmp_path, server.address)
    assert time.monotonic() - begun < 15  # the server holds each connection for 20 s
    check_unpacked(tmp_path)
    assert server.sent[:2] == [100_000, 0]
    assert sum(server.sent) == len(ARCHIVE)  # on a busy machine more connections than these two time out


def test_trickle_is_given_up(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "WAITS_S", (0,))
    server = serve(trickle=True)
    assert "bytes in 0.3 s" in refused(tmp_path, server.address)
    assert len(server.seen) == 2


def test_unsized_answer(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(sized=False)
    assert "does not say how large it is" in refused(tmp_path, server.address)
    assert os.listdir(tmp_path) == []


def test_other_archive_is_removed(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[5000] ^= 1
    server = serve(bytes(damaged))
    monkeypatch.setitem(download.MD5, NAME, hashlib.md5(ARCHIVE).hexdigest())
    assert "not the published archive" in refused(tmp_path, server.address)
    assert os.listdir(tmp_path) == []


HOSTILE = {
    "leads out": [member(f"{NAME}/../../evil"), member("/evil"), member(f"{NAME}/imagesTr/.."), member("../evil")],
    "is a link, a device": [
        member(f"{NAME}/link", b"", type=tarfile.SYMTYPE, linkname="../../evil"),
        member(f"{NAME}/link", b"", type=tarfile.SYMTYPE, linkname="dataset.json"),
        member(f"{NAME}/link", b"", type=tarfile.LNKTYPE, linkname=f"{NAME}/dataset.json"),
        member(f"{NAME}/pipe", b"", type=tarfile.FIFOTYPE),
        member(f"{NAME}/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member(f"{NAME}/disk", b"", type=tarfile.BLKTYPE),
        member(
            f"{NAME}/sparse",
            b"",
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.size": "9", "GNU.sparse.map": "0,9"},
        ),
    ],
    "does not lie in": [member("Task09_Spleen/dataset.json"), member("readme.txt")],
    "is there twice": [member(f"{NAME}/dataset.json", b"{}"), member(f"./{NAME}//imagesTr/hippocampus_001.nii.gz")],
    "is a file and a folder": [member(f"{NAME}/dataset.json/x"), member(f"{NAME}/imagesTr")],
}


@pytest.mark.parametrize(
    ("reason", "extra"), [(reason, extra) for reason, members in HOSTILE.items() for extra in members]
)
def test_hostile_archive(
    tmp_path: Path, serve: Callable[..., Server], reason: str, extra: tuple[tarfile.TarInfo, bytes]
) -> None:
    server = serve(pack(extra))
    folder = tmp_path / "a" / "b"
    assert reason in refused(folder, server.address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [len(ARCHIVE) + 30_000, 10**15, -512, -1024])
def test_bomb(tmp_path: Path, serve: Callable[..., Server], size: int) -> None:
    info, _ = member(f"{NAME}/imagesTr/bomb")
    info.size = size
    end = -(-len(ARCHIVE.rstrip(b"\0")) // 512) * 512
    server = serve(ARCHIVE[:end] + info.tobuf(tarfile.GNU_FORMAT) + bytes(20_480))
    assert "larger than the archive" in refused(tmp_path, server.address)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(ARCHIVE[:150_000], id="cut in a file"),
        pytest.param(ARCHIVE[: 1024 + 700], id="cut in a header"),
        pytest.param(ARCHIVE[:1024] + b"garbage!" * 64 + ARCHIVE[1536:], id="a header of garbage"),
        pytest.param(b"<html>log in</html>" * 100, id="another kind of file"),
        pytest.param(pack(files={"readme.txt": b"x"}), id="no dataset.json"),
        pytest.param(bytes(10_240), id="empty archive"),
    ],
)
def test_damaged_archive(tmp_path: Path, serve: Callable[..., Server], data: bytes) -> None:
    server = serve(data)
    assert "cannot be unpacked" in refused(tmp_path, server.address)
    assert os.listdir(tmp_path) == []


def test_modes_and_owners_of_the_archive_do_not_count(tmp_path: Path, serve: Callable[..., Server]) -> None:
    files = {k: v for k, v in FILES.items() if k != "dataset.json"}
    data = FILES["dataset.json"]
    server = serve(pack(member(f"{NAME}/dataset.json", data, mode=0o6777, uid=12345, gid=12345), files=files))
    mask = os.umask(0o027)
    try:
        download_task(NAME, tmp_path, server.address)
    finally:
        os.umask(mask)
    about = (tmp_path / NAME / "dataset.json").stat()
    assert (about.st_mode & 0o7777, about.st_uid) == (0o640, os.getuid())


def put_whole(folder: Path, data: bytes) -> None:
    part(folder).write_bytes(data)
    part(folder).with_suffix(".json").write_text(json.dumps({"validator": None, "size": len(data)}))


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 2600), st.integers(0, 255)), max_size=8), st.integers(0, 20_000))
def test_random_damage_is_an_error_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    small = bytearray(pack(member("./._x"), files={"dataset.json": b"{}", "a": b"y" * 20, "é" * 120: b"z" * 600}))
    for at, value in changes:
        small[at] = value
    data = bytes(small[:length]) or b"x"
    root = tmp_path_factory.mktemp("damage")
    folder = root / "folder"
    folder.mkdir()
    put_whole(folder, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(download.MD5, NAME, hashlib.md5(data).hexdigest())
        try:
            download_task(NAME, folder, "http://127.0.0.1:1")
        except UserError as error:
            assert "\n" not in str(error)
            assert os.listdir(folder) == []
        else:
            assert os.listdir(folder) == [NAME]
    assert os.listdir(root) == ["folder"]
    shutil.rmtree(root)


def test_disk_space_is_checked_before_anything_is_written(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(cuts=[100_000] + [0] * 4)
    refused(tmp_path, server.address)
    needed = 2 * len(ARCHIVE) - 100_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    said = refused(tmp_path, server.address)
    assert f"{download.decimal(needed)} are needed" in said
    assert f"{download.decimal(needed - 1)} are free" in said
    assert part(tmp_path).read_bytes() == ARCHIVE[:100_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Callable[[str], None]]]:
    place = tmp_path / "small"
    place.mkdir()
    if os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    yield place, resize
    subprocess.run(["umount", place], check=True)


def test_full_disk(small_disk: tuple[Path, Callable[[str], None]], serve: Callable[..., Server]) -> None:
    folder, resize = small_disk
    server = serve()
    assert "the disk is full" in refused(folder, server.address)  # while fetching
    assert 100_000 < part(folder).stat().st_size < 210_000
    resize("500k")
    assert "the disk is full" in refused(folder, server.address)  # while unpacking
    assert part(folder).stat().st_size == len(ARCHIVE)
    assert set(os.listdir(folder)) == {f".{NAME}.tar.part", f".{NAME}.tar.json"}
    resize("2m")
    download_task(NAME, folder, server.address)
    check_unpacked(folder)
    assert len(server.seen) == 2
    assert "Range" in server.seen[1]


def test_disk_full_in_the_first_place(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "the disk is full" in refused(tmp_path, server.address)
    assert set(os.listdir(tmp_path)) == {f".{NAME}.tar.part", f".{NAME}.tar.json"}
    monkeypatch.undo()
    monkeypatch.setitem(download.MD5, NAME, hashlib.md5(ARCHIVE).hexdigest())
    download_task(NAME, tmp_path, "http://127.0.0.1:1")  # nothing is left to fetch
    check_unpacked(tmp_path)


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused(tmp_path / "file", "http://127.0.0.1:1")


CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from medaug import download
name, folder, mirror, download.MD5[sys.argv[1]], kill = sys.argv[1:]
def copy(source, target, length):
    target.write(source.read(100)); target.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if kill == "unpacking":
    shutil.copyfileobj = copy
download.download_task(name, Path(folder), mirror)
"""


def child(folder: Path, server: Server, kill: str) -> subprocess.Popen[bytes]:
    digest = hashlib.md5(server.data).hexdigest()
    return subprocess.Popen([sys.executable, "-c", CHILD, NAME, str(folder), server.address, digest, kill])


def test_killed_while_fetching(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(stalls=[200_000])
    process = child(tmp_path, server, "fetching")
    deadline = time.monotonic() + 60
    while (not part(tmp_path).exists() or part(tmp_path).stat().st_size < 150_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    have = part(tmp_path).stat().st_size
    assert 150_000 <= have <= 200_000
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert server.sent[1:] == [len(ARCHIVE) - have]
    assert sum(server.sent) < 1.3 * len(ARCHIVE)


def test_killed_while_unpacking(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    process = child(tmp_path, server, "unpacking")
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / f".tmp-{_machine()}-{process.pid}-{NAME}").is_dir()
    assert not (tmp_path / NAME).exists()
    # Not leftovers of a dead process: one of a living process, one of the user.
    others = {f".tmp-{_machine()}-{os.getppid()}-{NAME}", f".tmp-mine-{NAME}"}
    for folder in (*others, f".tmp-{_machine()}-{process.pid}-Task09_Spleen"):
        (tmp_path / folder).mkdir()
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path, frozenset(others))
    assert len(server.seen) == 1


def test_two_at_once(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(stalls=[100_000])
    first = child(tmp_path, server, "never")
    try:
        while not part(tmp_path).exists():
            assert first.poll() is None
            time.sleep(0.02)
        assert "another process is downloading" in refused(tmp_path, server.address)
        server.released.set()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()
    check_unpacked(tmp_path)


def test_offline(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    serve()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nobody waits for a network that is not there"))
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        said = refused(tmp_path, f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert "no connection (Connection refused); get" in said
    assert download.HOMEPAGE in said

    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no connection (Name or service not known); get" in refused(tmp_path, "https://archive.invalid")
    assert os.listdir(tmp_path) == []


def test_lost_connection_is_waited_for(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(cuts=[100_000])
    connect = socket.create_connection
    failures = iter([False, True, True])

    def flaky(*args: object, **kwargs: object) -> socket.socket:
        if next(failures, False):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return connect(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", flaky)
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)


def test_proxy_is_used(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download_task(NAME, tmp_path, "http://archive.invalid/far")
    check_unpacked(tmp_path)
    assert [r["path"] for r in server.seen] == [f"http://archive.invalid/far/{NAME}.tar"]


@pytest.mark.parametrize(
    "mirror",
    ["", "/data/archives", "file:///data", "ftp://host/x", "http://", "http://[::1", "http://host:port/", "http://a b/",
     "http://host/x\nHost: y", "http://host/x?token=1", "http://user:secret@host/x"],
)  # fmt: skip
def test_invalid_mirror_address(tmp_path: Path, mirror: str) -> None:
    said = refused(tmp_path / "x", mirror)
    assert said.startswith("mirror")
    assert "secret" not in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_bytes_are_counted_on_a_terminal_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    chunks = [b"x" * 1000] * 40
    assert list(track_bytes(iter(chunks), "fetching", 100_000, 60_000)) == chunks
    out, err = capsys.readouterr()
    assert out == ""
    assert ("100.0/100.0 kB" in err) == ("fetching" in err) == terminal
