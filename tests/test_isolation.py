"""Worker processes that crash, hang, raise or are killed, and what the caller gets in each case."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medaug.errors import UserError
from medaug.isolation import Failure, isolated

SCRIPT = """
import math
from medaug.isolation import isolated
print("ran", list(isolated(math.sqrt, [4, 9], "roots", workers=2)))
"""


def misbehave(item: object) -> object:
    match item:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(60)
        case "hang in C":
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter
        case "user":
            raise UserError("a.nii: is bad; correct it")
        case "odd":
            raise _OddError("one", "two")
        case "unpicklable":
            return threading.Lock()
        case "noise":
            os.write(1, b"noise on stdout")
            os.write(2, b"noise on stderr")
            return sys.stdin.read()
        case "threads":
            return [os.environ[name] for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")]
        case "pid":
            return os.getpid()
        case float():
            time.sleep(item)
    return item


class _OddError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _all_end(pids: list[int], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while any(map(_is_running, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(_is_running, pids))


@pytest.mark.slow
def test_results_come_in_order_whatever_takes_longest() -> None:
    items = [0.3, 0.0, 0.1, *range(40)]
    assert list(isolated(misbehave, items, "", workers=3)) == items
    assert list(isolated(misbehave, iter(items), "")) == items
    assert list(isolated(misbehave, [], "")) == []


@pytest.mark.slow
def test_only_the_crashing_item_fails() -> None:
    items = [1, "segfault", 2, "kill", "kill", 3, "exit", 4, 5]
    for workers in (1, 3):
        results = list(isolated(misbehave, items, "", workers=workers))
        failures = {item: result.reason for item, result in zip(items, results, strict=True) if result != item}
        assert failures == {
            "segfault": "its reader crashed (SIGSEGV)",
            "kill": "its reader was killed (SIGKILL: perhaps memory ran out)",
            "exit": "its reader ended the process (exit status 3)",
        }


@pytest.mark.slow
@pytest.mark.parametrize("hang", ["hang", "hang in C"])
def test_an_item_that_takes_too_long_fails(hang: str) -> None:
    start = time.monotonic()
    results = list(isolated(misbehave, [1, hang, 2, 0.1], "", workers=2, timeout=1.5))
    assert results == [1, Failure("took longer than 1.5 s"), 2, 0.1]
    assert time.monotonic() - start < 8


@pytest.mark.slow
def test_the_time_of_an_item_does_not_count_for_the_next() -> None:
    assert list(isolated(misbehave, [0.4] * 4, "", workers=1, timeout=1)) == [0.4] * 4


@pytest.mark.slow
@pytest.mark.parametrize(("item", "kind"), [("user", UserError), ("odd", RuntimeError), ("unpicklable", TypeError)])
def test_what_the_function_raises_reaches_the_caller(item: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as error:
        list(isolated(misbehave, [1, item, 2], "", workers=2))
    assert "Traceback" in "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    if kind is UserError:
        assert str(error.value) == "a.nii: is bad; correct it"


@pytest.mark.slow
def test_workers_print_nothing_read_nothing_and_use_one_thread(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(isolated(misbehave, ["noise", "threads"], "", workers=1)) == ["", ["1", "1"]]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_items_are_consumed_only_as_needed() -> None:
    consumed = 0

    def count() -> Iterator[int]:
        nonlocal consumed
        for number in range(100_000):
            consumed += 1
            yield number

    results = isolated(misbehave, count(), "", workers=2)
    for _ in range(100):
        next(results)
    assert consumed < 150
    results.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_no_worker_outlives_the_iterator() -> None:
    results = isolated(misbehave, ["pid", 0.1, "pid", "hang", "hang"], "", workers=2)
    pids = [next(results), next(results), next(results)]
    assert _is_running(pids[0])
    results.close()  # type: ignore[attr-defined]
    assert _all_end([pids[0], pids[2]])


def test_processes_start_fast() -> None:
    start = time.monotonic()
    assert list(isolated(abs, [-1], "", workers=1)) == [1]
    assert time.monotonic() - start < 2  # 0.05 s on an idle machine


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stdin", "file", "-c", "-m"])
def test_the_main_script_is_not_run_again(tmp_path: Path, how: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"stdin": ["-"], "file": ["script.py"], "-c": ["-c", SCRIPT], "-m": ["-m", "script"]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT if how == "stdin" else "",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("ran [2.0, 3.0]\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    seconds = 4 if how == signal.SIGINT else 1  # longer than the wait below
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def work(item):\n"
        "    pathlib.Path(f'{os.getpid()}.pid').touch()\n"
        "    time.sleep(item)\n"
    )
    (tmp_path / "main.py").write_text(
        "import slow\n"
        "from medaug.isolation import isolated\n"
        f"list(isolated(slow.work, [{seconds}, {seconds}], '', workers=2, timeout=4))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C does
    else:
        process.send_signal(how)
    process.wait(10)
    # Nothing ends the workers of a killed process: they stop when their item or its time is over.
    assert _all_end(pids, 2 if how == signal.SIGINT else 10)


def test_a_worker_that_cannot_start_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RuntimeError, match="does not start"):
        list(isolated(abs, [1], "", workers=1))
