"""Processes many items in worker processes, so that a file that crashes a reader costs one result and not the run.

Readers written in C can crash the process or never return. A worker is therefore a fresh interpreter (it shares no
memory, locks or threads with the parent, and does not run the main script again), and handles one item at a time: if it
dies, it is known which item was responsible. The output of workers is discarded, because C++ libraries print there, and
because warnings of readers quote values of a file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from medaug.progress import track

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 8  # items per worker that may be started before the oldest is done; limits the results held in memory
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@dataclass(frozen=True)
class Failure:
    """Takes the place of a result if the worker died or took too long."""

    reason: str


def isolated(
    function: Callable[[T], R],
    items: Iterable[T],
    description: str,
    workers: int = 0,
    timeout: float = 600.0,
    memory: int = 0,
) -> Iterator[R | Failure]:
    """Apply a function to every item in worker processes, and yield the results in the order of the items.

    Args:
        function: a function that can be pickled by name (at the top of a module other than the main script), or a
            `functools.partial` of one.
        items: each can be pickled; they are consumed as needed.
        description: label of the progress bar.
        workers: number of processes; 0 for one per available processor.
        timeout: seconds that one item may take before its worker is killed.
        memory: bytes that a worker may allocate in addition to what it has at its start (on Linux); 0: no limit.

    Raises:
        Exception: whatever `function` raises, with the worker's traceback as a note. No worker outlives the iterator.
    """
    total = len(items) if isinstance(items, Sized) else None
    count = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    with contextlib.closing(_results(function, items, count, timeout, memory)) as results:
        yield from track(results, description, total)


def _results(
    function: Callable[[T], R], items: Iterable[T], count: int, timeout: float, memory: int
) -> Generator[R | Failure]:
    payload = pickle.dumps(function)
    pool: list[_Worker] = []
    done: dict[int, R | Failure] = {}
    waiting = enumerate(items)
    following = next(waiting, None)
    position = 0  # index of the next result to yield
    try:
        while True:
            while position in done:
                yield done.pop(position)
                position += 1
            while following and following[0] < position + _AHEAD * count:
                worker = next((worker for worker in pool if worker.index is None), None)
                if worker is None:
                    if len(pool) == count:
                        break
                    worker = _Worker(payload, timeout, memory)
                    pool.append(worker)
                worker.work_on(*following)
                following = next(waiting, None)
            busy: dict[object, _Worker] = {w.connection: w for w in pool if w.index is not None}
            if not busy:
                return
            for connection in wait([worker.connection for worker in busy.values()]):
                worker = busy[connection]
                kind, content = worker.receive()
                if kind == "raised":
                    raise content
                if kind == "died":
                    pool.remove(worker)
                if kind != "started" and worker.index is not None:
                    done[worker.index], worker.index = content, None
    finally:
        for worker in pool:
            worker.kill()


class _Worker:
    """A worker process, the parent's end of its connection, and the index of the item that it works on."""

    def __init__(self, payload: bytes, timeout: float, memory: int) -> None:
        self.connection, theirs = Pipe()
        self.index: int | None = None
        self._started = False
        self._timeout = timeout
        # Set the path before any import, because medaug may only be found through it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from medaug.isolation import _serve"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{code}; _serve({theirs.fileno()}, {timeout!r}, {memory!r})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            )
        self._send(payload)

    def work_on(self, index: int, item: object) -> None:
        self.index = index
        self._send(pickle.dumps(item))

    def receive(self) -> tuple[str, Any]:
        """Return the kind of the next message and its content; the end of the process is the kind "died"."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            return "died", Failure(self._cause_of_death())
        self._started = True
        return kind, content

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # if the worker has died, `receive` notices it
            self.connection.send_bytes(message)

    def _cause_of_death(self) -> str:
        self.connection.close()
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {self._timeout:g} s"
        if code == -signal.SIGKILL:
            return "its reader was killed (SIGKILL: perhaps memory ran out)"
        if code < 0:
            return f"its reader crashed ({signal.Signals(-code).name})"
        if not self._started:
            raise RuntimeError(f"a worker process of {sys.executable} does not start (exit status {code})")
        return f"its reader ended the process (exit status {code})"


def _serve(descriptor: int, timeout: float, memory: int) -> None:
    """Run a worker: receive a function and then items from a connection, and send the result of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too, but the parent ends them
    connection = Connection(descriptor)
    function: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        connection.send(("started", None))
        payload = connection.recv_bytes()
        while True:
            message = connection.recv_bytes()
            try:
                if function is None:
                    function = pickle.loads(payload)  # imports what it needs
                    _limit(memory)
                # The system ends this process when time is up, whatever code is running, even without the parent.
                signal.setitimer(signal.ITIMER_REAL, timeout)
                answer = pickle.dumps(("result", function(pickle.loads(message))))
            except MemoryError:
                limit = f"more than {memory / 2**30:.3g} GiB of memory" if memory else "more memory than there is"
                answer = pickle.dumps(("result", Failure(f"it needs {limit}")))
            except Exception as error:
                answer = pickle.dumps(("raised", _portable(error)))
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(answer)


def _limit(memory: int) -> None:
    """Limit the additional memory of this process to `memory` bytes; no limit if the system does not report its use."""
    if not memory:
        return
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        data = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (data + memory, hard))


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent to the parent, with its traceback as a note."""
    report = f"in a worker process:\n{traceback.format_exc()}"
    try:
        error.add_note(report)
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(report)
