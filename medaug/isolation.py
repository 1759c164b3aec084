"""Work on many files in processes of their own, so that a file that crashes a reader costs one result, not the run.

Readers written in C can end the process or never come back. A worker therefore is a fresh interpreter (it shares no
memory, locks or threads with us, and never runs our main script again) with one connection, and holds one item at a
time: when it dies, the item that did it is known. What workers print is dropped: C++ libraries print there, and
warnings of readers quote the values of a file.
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

_AHEAD = 8  # items begun per worker before the oldest one is done; bounds the results held in memory
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@dataclass(frozen=True)
class Failure:
    """What stands in for a result where there is none: the worker died, or took too long."""

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
        function: can be pickled by name: at the top of a module other than the main script, or a `functools.partial`
            of such.
        items: can be pickled each; taken as they are needed.
        description: stands before the progress bar.
        workers: processes; 0 for one per processor that we may use.
        timeout: seconds that one item may take before its worker is killed.
        memory: bytes that a worker may set aside beyond what it has when it starts (on Linux); 0: no limit.

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
    position = 0  # of the result to be yielded next
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
    """A process, our end of its connection, and the index of the item that it works on."""

    def __init__(self, payload: bytes, timeout: float, memory: int) -> None:
        self.connection, theirs = Pipe()
        self.index: int | None = None
        self._started = False
        self._timeout = timeout
        # The path is set before anything is imported: medaug may have been found through it.
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
        """Return the kind of message and what it holds; the end of the process is one too."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            return "died", Failure(self._bury())
        self._started = True
        return kind, content

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # a worker that has died is noticed when its answer is waited for
            self.connection.send_bytes(message)

    def _bury(self) -> str:
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
    """Be a worker: take a function and then items from a connection, and answer each item."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but to end us is our parent's part
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
                # The system itself ends us when the time is over, whatever code is running, our parent alive or not.
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
    """Let this process set aside so many bytes more than it has; nothing where the system does not say how many."""
    if not memory:
        return
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        data = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (data + memory, hard))


def _portable(error: Exception) -> Exception:
    """Return an error that survives the way to the parent, with its traceback as a note."""
    report = f"in a worker process:\n{traceback.format_exc()}"
    try:
        error.add_note(report)
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(report)
