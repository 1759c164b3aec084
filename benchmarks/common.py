"""Helpers of all benchmarks: the machine's name, repeated timings, tables of timings, files of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medaug.files import atomic_write

HERE = Path(__file__).parent


def machine() -> str:
    """Name of the processor, number of processors, and their load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def times(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of several runs, after one warm-up run that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def print_table(rows: Mapping[str, Sequence[float]], column: str, amounts: Mapping[str, float]) -> None:
    """Print per row: number of runs, their minimum, median and maximum seconds, and an amount divided by the median."""
    print(f"{'':32}{'repeats':>8}{'min s':>10}{'median s':>10}{'max s':>10}{column:>12}")
    for name, taken in rows.items():
        median = statistics.median(taken)
        print(
            f"{name:32}{len(taken):8}{min(taken):10.4f}{median:10.4f}{max(taken):10.4f}{amounts[name] / median:12.1f}"
        )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeated measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def arguments(doc: str, name: str) -> argparse.ArgumentParser:
    """A command-line parser with the folders for unfinished work and for results; `doc` is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs", "benchmarks", name), help="unfinished work is kept")
    parser.add_argument("--result", type=Path, default=HERE / "results" / f"{name}.json", help="JSON file to write")
    return parser


def about(seeds: Sequence[int], n: int) -> dict[str, Any]:
    """How a result was made: command (folders by name only), machine, versions, commit, seeds, number."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "machine": machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "versions": {name: version(name) for name in ("torch", "monai")},
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "seeds": list(seeds),
        "n": n,
    }


def save_result(path: Path, seeds: Sequence[int], n: int, figures: Mapping[str, Any]) -> None:
    """Write a result, with a record of how it was made."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(about(seeds, n) | dict(figures), indent=2) + "\n")
    print(f"written: {path}")
