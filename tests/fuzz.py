"""Damages the bytes of files, by a seed, and tests how a reader handles them."""

from __future__ import annotations

import random
import re
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medaug.errors import UserError
from medaug.isolation import isolated

_HEADER = 600  # bytes: most formats keep the important parts at the beginning


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def flip_bits_in_header(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(min(_HEADER, len(content)))] ^= 1 << rng.randrange(8)


def flip_bits_in_body(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 64))):
        content[rng.randrange(min(_HEADER, len(content) - 1), len(content))] ^= 1 << rng.randrange(8)


def overwrite_bytes_in_header(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(min(_HEADER, len(content)))
    extreme = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"9", b"-", b" ", b"\n", b"%", b"e"))
    content[start : start + rng.choice((1, 2, 4, 8))] = extreme * rng.choice((1, 2, 4, 8, 300))


def zero_range(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    length = min(rng.randrange(1, 4096), len(content) - start)
    content[start : start + length] = bytes(length)


def swap_chunks(content: bytearray, rng: random.Random) -> None:
    length = rng.randrange(1, max(2, len(content) // 3))
    a, b = sorted(rng.randrange(len(content) - length + 1) for _ in range(2))
    b = max(b, min(a + length, len(content) - length))
    content[a : a + length], content[b : b + length] = content[b : b + length], content[a : a + length]


def repeat_chunk(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.randrange(1, 2000)] * rng.choice((1, 2, 10))


MUTATORS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    truncate,
    flip_bits_in_header,
    flip_bits_in_body,
    overwrite_bytes_in_header,
    zero_range,
    swap_chunks,
    repeat_chunk,
)


def mutate(content: bytes, seed: int) -> bytes:
    """Damage content in one to three ways; the same seed gives the same damage, and there is always some damage."""
    rng = random.Random(seed)
    damaged = bytearray(content)
    while damaged == content:
        for mutator in rng.choices(MUTATORS, k=rng.choice((1, 1, 2, 3))):
            if len(damaged) > 1:
                mutator(damaged, rng)
    return bytes(damaged)


@dataclass(frozen=True)
class Trial:
    """A file to damage: its name (readers look at the suffix), its content, and the seed of the damage."""

    name: str
    content: bytes
    seed: int


@dataclass(frozen=True)
class Outcome:
    """How a reader handled a damaged file: the error's text ("" if it was read), seconds, and peak memory in MiB."""

    trial: Trial
    error: str
    seconds: float
    memory: float


def run_trials(
    reader: Callable[[Path], object], trials: Sequence[Trial], timeout: float = 20.0, limit: int = 0
) -> list[Outcome]:
    """Read each damaged file in a worker process. Fails where a reader raises anything but a one-line UserError
    that names the file, dies or hangs. `limit` is the address space in bytes that a worker may use; 0 for no limit.
    """
    from functools import partial

    outcomes = []
    for trial, outcome in zip(trials, isolated(partial(_try, reader, limit), trials, "", timeout=timeout), strict=True):
        assert isinstance(outcome, Outcome), f"{trial.name}, seed {trial.seed}: {outcome.reason}"
        outcomes.append(outcome)
    return outcomes


def _try(reader: Callable[[Path], object], limit: int, trial: Trial) -> Outcome:
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / trial.name
        path.write_bytes(mutate(trial.content, trial.seed))
        error, start = "", time.monotonic()
        try:
            reader(path)
        except UserError as refusal:
            error = str(refusal)
            assert folder in error and "; " in error and error.isprintable(), error
        except Exception as other:
            raise AssertionError(f"{trial.name}, seed {trial.seed}: {type(other).__name__}") from other
        seconds = time.monotonic() - start
    # Not getrusage: its maximum outlives exec, so it would be that of whoever started this worker.
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return Outcome(trial, error.replace(folder, ""), seconds, int(peak[1]) / 1024)
