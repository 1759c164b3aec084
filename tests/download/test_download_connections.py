"""Downloads over connections that break, stall or change, and over proxies."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from download_server import ARCHIVE, FILES, NAME, Server, check_unpacked, pack, part, refused

from medaug import download
from medaug.download import download_task
from medaug.progress import track_bytes


def test_broken_connections_resume_at_the_next_byte(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(cuts=[1, 70_000, 513, 100_000])
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert server.sent == [1, 70_000, 513, 100_000, len(ARCHIVE) - 170_514]
    assert [r.get("Range") for r in server.seen] == [None, *(f"bytes={n}-" for n in (1, 70_001, 70_514, 170_514))]
    assert [r.get("If-Range") for r in server.seen] == [None] + ['"one"'] * 4


def test_too_many_failures_stop_and_the_same_command_continues(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(cuts=[30_000] * 5)
    assert "the connection failed 5 times" in (message := refused(tmp_path, server.address))
    assert "150.0 kB are downloaded; run the same command again to continue" in message
    assert not (tmp_path / NAME).exists()
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert sum(server.sent) == len(ARCHIVE)


def test_only_new_bytes_reset_the_waits(
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


def test_changed_file_without_a_tag_is_noticed_by_its_size(tmp_path: Path, serve: Callable[..., Server]) -> None:
    old = serve(bytes(len(ARCHIVE) + 1), cuts=[100_000] + [0] * 4, etag=None)
    refused(tmp_path, old.address)
    server = serve(etag=None)
    download_task(NAME, tmp_path, server.address)
    check_unpacked(tmp_path)
    assert [r.get("Range") for r in server.seen] == ["bytes=100000-", None]


def test_not_found(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(statuses=[404])
    message = refused(tmp_path, server.address)
    assert message.startswith(
        f"{server.address}/{NAME}.tar: HTTP status 404 Not Found; get {NAME}.tar by hand from http://"
    )
    assert message.endswith(f"unpack it in {tmp_path}")
    assert len(server.seen) == 1
    assert os.listdir(tmp_path) == []


def test_status_416_without_a_range_is_an_error(tmp_path: Path, serve: Callable[..., Server]) -> None:
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


def test_waits_grow(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_very_slow_connection_counts_as_broken(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "WAITS_S", (0,))
    server = serve(trickle=True)
    assert "bytes in 0.3 s" in refused(tmp_path, server.address)
    assert len(server.seen) == 2


def test_response_without_a_size_is_refused(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(sized=False)
    assert "does not state its size" in refused(tmp_path, server.address)
    assert os.listdir(tmp_path) == []


def test_offline(tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    serve()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nobody waits for a network that is not there"))
    with socket.socket() as bound:  # no server listens there
        bound.bind(("127.0.0.1", 0))
        message = refused(tmp_path, f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert "no connection (Connection refused); get" in message
    assert download.HOMEPAGE in message

    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no connection (Name or service not known); get" in refused(tmp_path, "https://archive.invalid")
    assert os.listdir(tmp_path) == []


def test_connection_lost_during_the_download_is_retried(
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
def test_invalid_mirror_is_refused(tmp_path: Path, mirror: str) -> None:
    message = refused(tmp_path / "x", mirror)
    assert message.startswith("mirror")
    assert "secret" not in message
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_byte_counts_are_shown_only_on_a_terminal(
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
