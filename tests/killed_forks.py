"""Runs of stages as forks of one process that has imported everything, killed at a chosen moment."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import medaug
from medaug.launcher import run as run_stage

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Command:
    """A stage with its arguments."""

    name: str
    stage: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """How one run ended.

    Attributes:
        process: its number, and that of its session.
        status: exit status; None: it was killed.
        said: standard output and error.
        worked: seconds from its first write to its end.
        operations: that changed files, in its main process.
    """

    process: int
    status: int | None
    said: str
    worked: float
    operations: int


@dataclass(frozen=True)
class Kill:
    """When to kill a run: seconds after its first write, or before a file operation; and whether alone."""

    seconds: float | None = None
    operation: int | None = None
    alone: bool = False

    @property
    def kind(self) -> str:
        """Name under which this kind of kill is counted."""
        return f"{'time' if self.operation is None else 'operation'}, {'alone' if self.alone else 'group'}"


def import_everything() -> None:
    """Import whatever a stage may need, so that forks need not."""
    for module in pkgutil.walk_packages(medaug.__path__, "medaug."):
        if module.name != "medaug.__main__":
            importlib.import_module(module.name)
    for name in ("lightning.pytorch.loggers", "tensorboard", "torch.utils.tensorboard", "matplotlib.pyplot", "skimage"):
        importlib.import_module(name)


@dataclass(frozen=True)
class Running:
    """A running fork with its pipes: one reports its first write, one the number of its file operations."""

    process: int
    log: Path
    kill: Kill | None
    started: int
    counted: int

    def wait_for_a_write(self) -> None:
        """Wait for the fork's first write, or its end."""
        os.read(self.started, 1)

    def end(self, begun: float, timeout: float) -> Run:
        """Wait for the fork to end; the times of the kill and of the timeout count from `begun`."""
        signals = [(timeout, os.killpg, signal.SIGABRT)]
        if self.kill is not None and self.kill.seconds is not None:
            signals.insert(0, (self.kill.seconds, os.kill if self.kill.alone else os.killpg, signal.SIGKILL))
        while not (ended := os.waitpid(self.process, os.WNOHANG))[0]:
            if signals and time.monotonic() - begun > signals[0][0]:
                _, send, number = signals.pop(0)
                send(self.process, number)
            time.sleep(0.001)
        worked, status = time.monotonic() - begun, os.waitstatus_to_exitcode(ended[1])
        was_killed = self.kill is not None and status == -signal.SIGKILL
        operations = 0 if was_killed else int(os.read(self.counted, 20) or 0)
        os.close(self.started)
        os.close(self.counted)
        said = self.log.read_text(errors="replace")
        return Run(self.process, None if was_killed else status, said, worked, operations)


def run(command: Command, home: Path, kill: Kill | None = None, timeout: float = 600.0) -> Run:
    """Run a command in a fork that has `home` as its working folder; kill it as asked."""
    running = begin(command, home, home.with_name("said.txt"), kill)
    running.wait_for_a_write()
    return running.end(time.monotonic(), timeout)


def begin(command: Command, home: Path, log: Path, kill: Kill | None, **environment: str) -> Running:
    """Start a command in a fork that has `home` as its working folder and writes its output to `log`."""
    (started, start), (counted, count) = os.pipe(), os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.environ.update(environment)
        _be_the_stage(command, home, kill, log, start, count)
    os.close(start)
    os.close(count)
    return Running(process, log, kill, started, counted)


def _be_the_stage(command: Command, home: Path, kill: Kill | None, log: Path, started: int, counted: int) -> NoReturn:
    """In the fork: leave the parent's session and files, run the stage, and exit without the parent's cleanup."""
    status, operations = 1, list[str]()
    try:
        os.setsid()
        os.chdir(home)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        body = importlib.import_module(f"medaug.{command.stage}").main
        _watch(home, kill, started, operations)
        status = run_stage(command.stage, body, command.words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(counted, str(len(operations)).encode())
        os._exit(status)


def _watch(home: Path, kill: Kill | None, started: int, operations: list[str]) -> None:
    """Count the file operations below `home`; report the first to the parent, and die before the chosen one."""
    process, inside = os.getpid(), f"{home}{os.sep}"

    def hook(event: str, args: tuple[Any, ...]) -> None:
        changes = bool((args[2] or 0) & _WRITES) if event == "open" else event in _CHANGES
        if not changes or not isinstance(args[0], str | bytes | os.PathLike) or os.getpid() != process:
            return
        if not os.path.abspath(os.fsdecode(args[0])).startswith(inside):
            return
        operations.append(event)
        if len(operations) == 1:
            os.write(started, b".")
        if kill is not None and len(operations) == kill.operation:
            (os.kill if kill.alone else os.killpg)(process, signal.SIGKILL)

    sys.addaudithook(hook)
