"""What the benchmarks share: the machine's name, repeated timings, a table of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def machine() -> str:
    """The processor's name as the kernel gives it, how many there are, and how busy they are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def times(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of several runs, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def print_table(rows: Mapping[str, Sequence[float]], column: str, amounts: Mapping[str, float]) -> None:
    """Per row: runs, their least, median and largest seconds, and an amount divided by the median."""
    print(f"{'':32}{'repeats':>8}{'min s':>10}{'median s':>10}{'max s':>10}{column:>12}")
    for name, taken in rows.items():
        median = statistics.median(taken)
        print(
            f"{name:32}{len(taken):8}{min(taken):10.4f}{median:10.4f}{max(taken):10.4f}{amounts[name] / median:12.1f}"
        )
