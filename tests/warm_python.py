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
    command = [sys.executable, "-m", module, *words]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {"module": module, "words": list(words), "cwd": str(cwd), "env": dict(env)}
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request | {"out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        if not select.select([server.stdout], [], [], timeout)[0]:
            os.kill(pid, signal.SIGKILL)
            server.stdout.readline()
            raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
