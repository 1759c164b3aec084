"""Locks: one holder at a time, released when the process ends, even if it forked."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medaug import locks

FORKED = """
import os, sys, time
from pathlib import Path
from medaug.locks import acquire
held = acquire(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time_and_the_file_is_removed(tmp_path):
    path = tmp_path / "a.lock"
    assert locks.is_free(path)
    with locks.locked(path) as first:
        assert first is not None and first.certain
        assert locks.acquire(path) is None and locks.is_free(path) is False
    assert not path.exists()
    first.release()  # a second time


def test_a_waiting_process_gets_the_lock_although_its_file_was_removed(tmp_path):
    path = tmp_path / "a.lock"
    first, got = locks.acquire(path), []
    waiting = threading.Thread(target=lambda: got.append(locks.acquire(path, wait=True)))
    waiting.start()
    time.sleep(0.3)
    assert not got
    first.release(remove=True)
    waiting.join(10)
    assert got[0] is not None and locks.acquire(path) is None
    got[0].release()


def test_waiting_ends_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_LONGEST_WAIT_S", 0.3)
    with locks.locked(tmp_path / "a.lock"), pytest.raises(locks.UserError, match="another process has held it for"):
        locks.acquire(tmp_path / "a.lock", wait=True)


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    path = tmp_path / "a.lock"
    parent = subprocess.Popen([sys.executable, "-c", FORKED, str(path)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        assert locks.is_free(path) is False, "the parent holds it still"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        os.kill(child, 0)  # alive
        end = time.monotonic() + 30  # the child releases the lock as soon as it runs, perhaps after its parent has died
        while (lock := locks.acquire(path)) is None and time.monotonic() < end:
            time.sleep(0.01)
        assert lock is not None
        lock.release()
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_child_does_not_release_the_lock_of_its_parent(tmp_path):
    held = locks.acquire(tmp_path / "a.lock")
    child = os.fork()
    if child == 0:
        held.release(remove=True)  # no effect: the parent holds it
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "a.lock").exists() and locks.acquire(tmp_path / "a.lock") is None
    held.release()


def test_a_file_system_without_locks_is_warned_of_once(tmp_path, monkeypatch, caplog):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for name in ("a.lock", "b.lock"):
        with locks.locked(tmp_path / name) as held:
            assert not held.certain
    assert caplog.text.count("No locks available") == 1
    assert locks.is_free(tmp_path / "a.lock") is True and not (tmp_path / "a.lock").exists()
    (tmp_path / "c.lock").touch()
    assert locks.is_free(tmp_path / "c.lock") is None
