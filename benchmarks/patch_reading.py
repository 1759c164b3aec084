"""Time reading patches from a memory-mapped scan against reading the whole scan, from the page cache and from the disk.

benchmarks/patch_reading.py [--side 512] [--patch 96] [--number 20] [--work DIR] [--result FILE]

The scan is a file of the cache's format with random voxels (float32, one modality), written to `--work` and removed in
the end. A patch is read as training reads it (`as_tensors`), at places that `Patches` chooses. "From the disk" means
that the kernel was asked to drop the file from its page cache before each read. MB/s are bytes of patches, so a way
that reads more than the patch has fewer of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import arguments, print_table, save_result, spread

from medaug.cohort.manifest import Case
from medaug.data.batches import as_tensors
from medaug.data.cases import ModelCase
from medaug.data.patches import Patches
from medaug.data.preprocessing import Placement


def scan(path: Path, side: int) -> ModelCase:
    """Write a scan with random voxels, unless it is there, and map it."""
    shape = (side, side, side)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1, *shape))
        rng = np.random.default_rng(0)
        for x in range(side):
            image[0, x] = rng.random((side, side), np.float32)
        image.flush()
    placement = Placement(shape, ((0, 1), (1, 1), (2, 1)), shape, (0.0,), (1.0,))
    image = np.load(path, mmap_mode="r")
    return ModelCase(Case("large", ("large",), None, "large", "train"), image, None, np.eye(4), image.dtype, placement)


def forget(path: Path) -> None:
    """Ask the kernel to drop a file from its page cache."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Print a table of seconds per patch, and write the result."""
    parser = arguments(__doc__ or "", "patch_reading")
    parser.add_argument("--side", type=int, default=512, help="voxels of the scan along each axis")
    parser.add_argument("--patch", type=int, default=96, help="voxels of a patch along each axis")
    parser.add_argument("--number", type=int, default=20, help="patches per row")
    options = parser.parse_args()
    path = options.work / "large.npy"
    scan(path, options.side)
    patches = Patches((options.patch,) * 3, (2, 2, 2))

    def patch(seed: int) -> None:
        case = scan(path, options.side)  # mapped anew, so that no page is left from the last patch
        as_tensors(case, box=patches.box(case, seed))

    def whole(seed: int) -> None:
        case = scan(path, options.side)
        np.array(case.image)[(slice(None), *patches.box(case, seed))].copy()

    def taken(work: Callable[[int], None], cold: bool) -> list[float]:
        seconds = []
        for seed in range(options.number + 1):  # the first one warms up
            if cold:
                forget(path)
            began = time.perf_counter()
            work(seed)
            seconds.append(time.perf_counter() - began)
        return seconds[1:]

    rows = {
        f"{name}, {where}": taken(work, where == "disk")
        for where in ("page cache", "disk")
        for name, work in (("patch", patch), ("whole scan, then the patch", whole))
    }
    megabytes = 4e-6 * options.patch**3
    print_table(rows, "MB/s", dict.fromkeys(rows, megabytes))
    path.unlink()
    figures = {
        "scan_mb": 4e-6 * options.side**3,
        "patch_mb": megabytes,
        "seconds": {name: spread(values) for name, values in rows.items()},
        "mb_per_second": {name: megabytes / spread(values)["median"] for name, values in rows.items()},
    }
    save_result(options.result, [0], options.number, figures)


if __name__ == "__main__":
    main()
