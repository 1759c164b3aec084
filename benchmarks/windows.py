"""Memory and time of sampling while the volume grows: by windows, and as whole volumes.

benchmarks/windows.py [--sides 64 96 128 192 256] [--whole 64 96 128] [--patch 64] [--steps 2] [--out DIR]

Every row is a process of its own, on one thread, whose peak memory (resident set) the kernel reports. The model is
small (`CHANNELS`), has random weights, and uses one level of Haar wavelets; samples are guided. What counts is how
memory grows, not its absolute size. `--sides 512` takes about 6 GiB and hours on one core.

Writes windows.json, windows.md and windows.png to `--out`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import HERE, about

from medaug.diffusion.guidance import Guidance
from medaug.diffusion.samplers import Sampling
from medaug.files import atomic_write
from medaug.training.model import DiffusionModel

CHANNELS, OVERLAP = [4, 8], 0.25


def measure(side: int, patch: int | None, steps: int) -> dict[str, Any]:
    """Sample one volume; returns seconds, number of windows, and peak memory before and after in bytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "codec": {"name": "haar"},
        "network": {
            "spatial_dims": 3,
            "channels": CHANNELS,
            "attention": [False, False],
            "num_res_blocks": 1,
            "num_head_channels": 8,
            "norm_num_groups": 4,
        },
        "process": {"noise_schedule": "rectified_flow", "prediction_type": "flow"},
        "data": {"patch": None if patch is None else [patch] * 3},
    }
    model = DiffusionModel(options, 1, 2, "fp32").eval()
    # Attention in the middle block of a whole volume would need memory by the square of its voxels.
    model.network.unet.middle_block.attention = torch.nn.Identity()
    sampling = Sampling(steps=steps, overlap=None if patch is None else OVERLAP)
    label = torch.zeros(1, side, side, side, dtype=torch.uint8)
    label[:, side // 4 : side // 2] = 1
    before = peak()
    began = time.perf_counter()
    model.sample(label, [0], sampling, Guidance(2.0))
    grid = (side // 2,) * 3
    windows = None if patch is None else len(sampling.windows(grid, (patch // 2,) * 3))
    return {"seconds": time.perf_counter() - began, "windows": windows, "before": before, "peak": peak()}


def peak() -> int:
    """The peak memory of this process, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def rows(sides: list[int], patch: int | None, steps: int) -> list[dict[str, Any]]:
    """A measurement of each side, each in a process of its own."""
    found = []
    for side in sides:
        command = [sys.executable, __file__, "--measure", str(side), str(patch or 0), str(steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout) if done.returncode == 0 else {"status": done.returncode}
        found.append({"side": side, "patch": patch} | result)
        print(found[-1], flush=True)
    return found


def markdown(found: list[dict[str, Any]]) -> str:
    """The rows as a table for people."""
    lines = [
        "| volume | sampled | windows | peak GiB | above the start, GiB | copies of the volume | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        how = "whole" if row["patch"] is None else f"by windows of {row['patch']}^3"
        if "peak" not in row:
            lines.append(f"| {row['side']}^3 | {how} | | out of memory | | | |")
            continue
        more = row["peak"] - row["before"]
        lines.append(
            f"| {row['side']}^3 | {how} | {row['windows'] or ''} | {row['peak'] / 2**30:.2f} | {more / 2**30:.2f} "
            f"| {more / 4 / row['side'] ** 3:.0f} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Peak memory and time against the number of voxels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, name, of in zip(
        figure.subplots(1, 2),
        ("memory above the start, GiB", "seconds per sample"),
        (lambda row: (row["peak"] - row["before"]) / 2**30, lambda row: row["seconds"]),
        strict=True,
    ):
        for whole, mark in ((True, "o-"), (False, "s-")):
            some = [row for row in found if (row["patch"] is None) == whole and "peak" in row]
            label = "whole volume" if whole else "by windows"
            axes.plot([row["side"] for row in some], [of(row) for row in some], mark, label=label)
        axes.set(xlabel="voxels along each side", ylabel=name, xscale="log", yscale="log")
        ticks = sorted({row["side"] for row in found})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, and write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 96, 128, 192, 256], help="sampled by windows")
    parser.add_argument("--whole", type=int, nargs="*", default=[64, 96, 128], help="sampled as whole volumes")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--measure", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        side, patch, steps = options.measure
        print(json.dumps(measure(side, patch or None, steps)))
        return
    found = rows(options.whole, None, options.steps) + rows(options.sides, options.patch, options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = {"about": about([0], 1), "overlap": OVERLAP, "channels": CHANNELS, "steps": options.steps, "rows": found}
    for name, text in (("windows.json", json.dumps(figures, indent=2) + "\n"), ("windows.md", markdown(found))):
        with atomic_write(options.out / name) as temporary:
            temporary.write_text(text)
    draw(found, options.out / "windows.png")
    print(markdown(found))


if __name__ == "__main__":
    main()
