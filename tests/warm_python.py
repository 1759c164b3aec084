"""Start `python -m MODULE` without waiting for imports: fork it from an interpreter that has imported the libraries.

Importing torch and MONAI costs several seconds of processor time, and the tests start more than a hundred stages.
Here one interpreter imports only these libraries, nothing of medaug, and then forks once per request. The fork becomes
the program: it has its own folder, environment, arguments and output files, and runs the module as `__main__`, so exit
status, tracebacks, signals and exit handlers are those of a process of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

LIBRARIES = ("torch", "monai.networks.nets", "lightning.pytorch", "nibabel", "SimpleITK", "hydra")


def run_module(
    module: str, words: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run([sys.executable, "-m", module, *words], ...)` does with text output captured.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds; it was killed.
    """
    running = Running(module, words, cwd, env, own_session=False)
    output, errors = running.communicate(timeout)
    return subprocess.CompletedProcess(running.args, running.wait(), output, errors)


class Running:
    """A program that was started in this way: what `subprocess.Popen` with text output captured offers, in part.

    One program runs at a time: a further one waits for it.

    Args:
        module, words, cwd, env: `python -m MODULE WORDS` in this folder and environment.
        own_session: whether it leads a session and a process group of its own.
    """

    def __init__(
        self, module: str, words: Sequence[str], cwd: Path, env: Mapping[str, str], own_session: bool = True
    ) -> None:
        self.args = [sys.executable, "-m", module, *words]
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        self._server = _server()
        request = {"module": module, "words": list(words), "cwd": str(cwd), "env": dict(env), "session": own_session}
        out, err = map(str, self._files)
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request | {"out": out, "err": err}).encode() + b"\n")
        self._answers = self._server.stdout
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._status(0)

    def _status(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], seconds)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; after `timeout` seconds, kill it and raise `TimeoutExpired`."""
        status = self._status(timeout)
        if status is None:
            self.kill()
            self._status(None)
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, *(path.read_text() for path in self._files))
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; return what it wrote to standard output and standard error."""
        self.wait(timeout)
        output, errors = (path.read_text() for path in self._files)
        return output, errors


@cache
def _server() -> subprocess.Popen[bytes]:
    # One thread, so that sums are taken in one order. Unbuffered, so that `select` sees what has not been read.
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.kill)
    return server


def serve() -> dict:
    """Fork once per request on standard input and report each process's number and exit status.

    Returns:
        In each fork, its request; the server itself returns an empty one once its input ends.
    """
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if (pid := os.fork()) == 0:
            return request
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return {}


def become(request: dict) -> None:
    """Take on folder, environment, arguments and standard streams of the requested program."""
    if request["session"]:
        os.setsid()
    # A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for descriptor, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT),
        (2, request["err"], os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, mode, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.path[0] = request["cwd"]  # as `-m` does
    sys.path[1:1] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = [request["module"], *request["words"]]


if __name__ == "__main__":
    for library in LIBRARIES:
        __import__(library)
    request = serve()
    if request:
        become(request)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
