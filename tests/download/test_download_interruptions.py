"""Downloads that meet existing files, full disks, killed processes or each other."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from download_server import ARCHIVE, NAME, Server, check_unpacked, part, refused

from medaug import download
from medaug.download import download_task
from medaug.files import _machine


def test_existing_folders_are_not_changed(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine.txt").write_text("mine")
    assert "holds no dataset.json" in refused(tmp_path, server.address)
    (tmp_path / NAME / "dataset.json").write_text("mine")
    assert download_task(NAME, tmp_path, server.address) == tmp_path / NAME
    assert {p.name: p.read_text() for p in (tmp_path / NAME).iterdir()} == {"mine.txt": "mine", "dataset.json": "mine"}
    assert os.listdir(tmp_path) == [NAME]
    assert server.seen == []


def test_space_is_checked_before_anything_is_written(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(cuts=[100_000] + [0] * 4)
    refused(tmp_path, server.address)
    needed = 2 * len(ARCHIVE) - 100_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    message = refused(tmp_path, server.address)
    assert f"{download.decimal(needed)} are needed" in message
    assert f"{download.decimal(needed - 1)} are free" in message
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
    assert "the disk is full" in refused(folder, server.address)  # while downloading
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


def test_disk_full_while_unpacking(
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
    download_task(NAME, tmp_path, "http://127.0.0.1:1")  # nothing is left to download
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


def test_killed_while_downloading(tmp_path: Path, serve: Callable[..., Server]) -> None:
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


def test_two_processes_at_once(tmp_path: Path, serve: Callable[..., Server]) -> None:
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
