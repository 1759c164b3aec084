"""Archives: which are downloaded, and hostile or damaged ones, which are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from download_server import ARCHIVE, FILES, NAME, Server, check_unpacked, member, pack, part, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug import download
from medaug.download import download_task
from medaug.errors import UserError


def test_downloaded_and_unpacked_without_macos_metadata(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(
        pack(member(f"._{NAME}"), member(f"./._{NAME}"), member(f"{NAME}/imagesTr/._hippocampus_001.nii.gz"))
    )
    assert download_task(NAME, tmp_path / "new" / "folder", f"{server.address}/") == tmp_path / "new" / "folder" / NAME
    check_unpacked(tmp_path / "new" / "folder")
    assert [(r["path"], r.get("Range")) for r in server.seen] == [(f"/msd/{NAME}.tar", None)]


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


def test_archive_with_another_checksum_is_removed(
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
    "is not in Task": [member("Task09_Spleen/dataset.json"), member("readme.txt")],
    "occurs twice": [member(f"{NAME}/dataset.json", b"{}"), member(f"./{NAME}//imagesTr/hippocampus_001.nii.gz")],
    "is both a file and a folder": [member(f"{NAME}/dataset.json/x"), member(f"{NAME}/imagesTr")],
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


def test_modes_and_owners_in_the_archive_are_ignored(tmp_path: Path, serve: Callable[..., Server]) -> None:
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


@pytest.mark.slow
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
