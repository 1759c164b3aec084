"""Atomic and durable writing of files and folders; files of others are not touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medaug import files
from medaug.errors import UserError


@pytest.fixture
def calls(monkeypatch):
    """The names of files and folders that are synced and renamed, in order."""
    seen = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(handle):
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def renamed(function):
        return lambda source, target: (seen.append(("rename", Path(target).name)), function(source, target))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed(replace))
    monkeypatch.setattr(os, "rename", renamed(rename))
    return seen


def test_a_file_is_synced_before_its_name_and_the_folder_after(tmp_path, calls):
    with files.atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert calls == [("sync", temporary.name), ("rename", "a.txt"), ("sync", tmp_path.name)]


def test_a_folder_is_synced_with_all_its_files_before_its_name(tmp_path, calls):
    with files.temporary_folder(tmp_path / "out") as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "b.txt").write_text("x")
        files.put_folder(temporary, tmp_path / "out")
    assert {name for _, name in calls[:3]} == {"b.txt", "sub", temporary.name}
    assert calls[3:] == [("rename", "out"), ("sync", tmp_path.name)]
    assert (tmp_path / "out/sub/b.txt").read_text() == "x"


def test_a_folder_that_was_made_meanwhile_is_left_alone(tmp_path):
    with files.temporary_folder(tmp_path / "out") as temporary:
        temporary.mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("kept")
        with pytest.raises(UserError, match=r"out: cannot be written \(Directory not empty\); choose another folder"):
            files.put_folder(temporary, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_only_temporary_folders_of_dead_processes_of_this_machine_are_removed(tmp_path, caplog):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f".tmp-{files._machine()}-{dead.pid}-out",
        "alive": f".tmp-{files._machine()}-{os.getppid()}-out",
        "elsewhere": f".tmp-0123abcd-{dead.pid}-out",
        "older": f".tmp-{dead.pid}-out",
        "user": ".tmp-my-out",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    with files.temporary_folder(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == set(names.values()) - {names["dead"]}
    (line,) = caplog.messages
    assert names["elsewhere"] in line and "another machine" in line


def test_the_first_write_to_a_folder_removes_what_killed_processes_left_there(tmp_path):
    die = "import os, sys\nfrom medaug.files import atomic_write\nwith atomic_write(sys.argv[1]) as temporary:\n"
    die += "    temporary.write_text('half')\n    os.kill(os.getpid(), 9)"
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", die, str(tmp_path / "a.csv")], env=environment)
    (leftover,) = tmp_path.iterdir()
    assert killed.returncode == -9 and leftover.name.startswith(".tmp-") and leftover.name.endswith("-a.csv")
    others = {f".tmp-{files._machine()}-{os.getppid()}-b.csv", ".tmp-0123abcd-99999999-b.csv", ".tmp-mine.csv"}
    for name in others:
        (tmp_path / name).write_text("of somebody who may be alive")
    with files.atomic_write(tmp_path / "c.csv") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == others | {"c.csv"}


def test_folders_are_the_same_when_names_and_bytes_are(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "x").write_text("same")
    assert files.same_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "sub" / "x").write_text("else")
    assert not files.same_files(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "sub" / "x").write_text("same")
    (tmp_path / "b" / "y").symlink_to(tmp_path)
    assert not files.same_files(tmp_path / "a", tmp_path / "b")


def test_a_process_in_another_namespace_has_another_machine_id(monkeypatch):
    here = files._machine()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026533000]")
    assert files._machine.__wrapped__() != here


@pytest.mark.parametrize("value", [{"é": [1, 0.5, None, True]}, "a\udcfcb", []])
def test_json_is_read_back_unchanged_whatever_the_names(tmp_path, value, calls):
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_bytes().decode()
    assert json.loads(text) == value and text.endswith("\n")
    assert calls[1:] == [("rename", "a.json"), ("sync", tmp_path.name)]
