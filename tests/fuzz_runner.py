"""Reads each damaged file in a process of its own, and records the result, the time and the memory.

The process is forked from one that has imported everything, so that a trial costs milliseconds. A limit on its
address space ends what would take more memory than is allowed, another on its time what would never end.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzz import mutate
from fuzz_formats import Mutator

from medaug.errors import UserError, printable

MEMORY = 2 << 30  # bytes that a process may use, with all that it imported
SECONDS = 30.0  # of the processor


@dataclass(frozen=True)
class Kind:
    """A kind of file and what reads it.

    Attributes:
        name: of the kind.
        template: folder with a sound file and what belongs to it; copied to `home` for each trial.
        home: where the trial takes place.
        file: the one to be damaged, relative to the folder.
        read: takes its path; raises UserError where it is refused.
        knows: damage that knows the format.
        names: what an error must have in it; "" for the path of the file.
        seconds: of the processor, for one trial.
    """

    name: str
    template: Path
    home: Path
    file: str
    read: Callable[[Path], object]
    knows: Sequence[Mutator]
    names: str = ""
    seconds: float = SECONDS


@dataclass(frozen=True)
class Outcome:
    """The result of reading a damaged file.

    Attributes:
        kind: its name.
        seed: of the damage.
        result: "read", "refused", or a fault: "traceback", "message", "hang", "crash".
        text: the error, or the traceback.
        damage: what was done to the file.
        seconds: of the processor.
        memory: bytes at the most, with all that was imported.
    """

    kind: str
    seed: int
    result: str
    text: str
    damage: str
    seconds: float
    memory: int

    @property
    def is_fault(self) -> bool:
        return self.result not in {"read", "refused"} or self.memory > MEMORY


def damaged(kind: Kind, content: bytes, seed: int) -> tuple[bytes, str]:
    """Damage content by a seed: half of the time for its format, a quarter by bits, otherwise both; also says how."""
    rng = random.Random(zlib.crc32(kind.name.encode()) ^ seed)
    made = bytearray(content)
    done = []
    if seed % 4 != 3 and kind.knows:
        for mutator in dict.fromkeys(rng.choices(kind.knows, k=rng.choice((1, 1, 1, 2)))):
            if len(made) > 100 or mutator.__name__.startswith(("json", "yaml", "csv")):
                mutator(made, rng)
                done.append(mutator.__name__)
    if made == content or seed % 8 == 6:
        made = bytearray(mutate(bytes(made) or content, seed))
        done.append("bytes")
    return bytes(made), "+".join(done)


def run_trial(kind: Kind, seed: int) -> Outcome:
    """Damage the file by a seed and read it, each in a forked process: libraries that help with damage may crash."""
    shutil.rmtree(kind.home, ignore_errors=True)
    shutil.copytree(kind.template, kind.home, symlinks=True)
    path = kind.home / kind.file
    content = path.read_bytes()

    def damage() -> str:
        made, done = damaged(kind, content, seed)
        path.write_bytes(made)
        return done

    done = _forked(damage, 60.0)[0]
    if not isinstance(done, str):
        path.write_bytes(mutate(content, seed))
        done = "bytes"
    answer, status, usage = _forked(lambda: _read(kind, path), 6 * kind.seconds)
    seconds = usage.ru_utime + usage.ru_stime
    result, text = answer if isinstance(answer, tuple) else ("crash", f"ended by {status}")
    if answer is None and -status in {signal.SIGXCPU, signal.SIGKILL}:
        result, text = "hang", f"stopped after {seconds:.0f} s of the processor"
    return Outcome(kind.name, seed, result, text, done, seconds, usage.ru_maxrss * 1024)


def run_all(kinds: Sequence[Kind], count: int, first_seed: int = 0) -> Iterator[Outcome]:
    """Run `count` trials, taking the kinds in turn, with seeds from `first_seed` on; remove what they made."""
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield run_trial(kind, first_seed + number // len(kinds))
        shutil.rmtree(kind.home, ignore_errors=True)


def table(outcomes: Iterable[Outcome]) -> str:
    """Counts per kind, the slowest and the largest, as text."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.kind, []).append(outcome)
    columns = ("read", "refused", "traceback", "message", "crash", "hang")
    lines = [
        f"{'kind':<28}{'files':>6}" + "".join(f"{name:>10}" for name in columns) + f"{'most MiB':>10}{'most s':>8}"
    ]
    total = [one for group in groups.values() for one in group]
    for name, group in [*sorted(groups.items()), ("all", total)]:
        counts = Counter(one.result for one in group)
        memory, seconds = max(one.memory for one in group) / 2**20, max(one.seconds for one in group)
        numbers = "".join(f"{counts[column]:>10}" for column in columns)
        lines.append(f"{name:<28}{len(group):>6}{numbers}{memory:>10.0f}{seconds:>8.1f}")
    return "\n".join(lines)


def _forked(task: Callable[[], object], patience: float) -> tuple[object, int, resource.struct_rusage]:
    """Call a function in a process of its own.

    Returns:
        what it returned, None where the process ended otherwise or was killed after `patience` seconds; the exit
        status, negative for a signal; and what it used.
    """
    receiver, sender = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if not process:
        try:
            os.close(receiver)
            os.setsid()
            os.write(sender, pickle.dumps(task()))
        finally:
            os._exit(0)
    os.close(sender)
    message, end = b"", time.monotonic() + patience
    with os.fdopen(receiver, "rb") as stream:
        while select.select([stream], [], [], max(end - time.monotonic(), 0))[0]:
            if not (part := os.read(stream.fileno(), 1 << 16)):
                break
            message += part
        else:
            os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    return pickle.loads(message) if message else None, os.waitstatus_to_exitcode(status), usage


def _limit(kind: Kind) -> None:
    """Limit this process to the memory and time of a trial, and discard what libraries print."""
    with open(os.devnull, "r+b") as nothing:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
    status = Path("/proc/self/status").read_text()
    size, resident = (int(re.findall(rf"{name}:\s*(\d+)", status)[0]) << 10 for name in ("VmSize", "VmRSS"))
    limit = size + MEMORY - resident
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(kind.seconds), int(kind.seconds) + 5))
    os.chdir(kind.home)


def _read(kind: Kind, path: Path) -> tuple[str, str]:
    _limit(kind)
    try:
        kind.read(path)
        return "read", ""
    except UserError as error:
        text = printable(str(error))  # as stages show it
        is_good = (kind.names or str(path)) in text and "; " in text
        return ("refused" if is_good else "message"), text
    except BaseException:
        return "traceback", traceback.format_exc()[-4000:]
