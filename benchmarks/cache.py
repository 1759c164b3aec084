"""Time an epoch with full preprocessing against an epoch from the cache, on the hippocampus cohort.

python benchmarks/cache.py [folder of Task04_Hippocampus]

An epoch hands every case's image and label over once, as arrays in memory. Full preprocessing reads, unpacks and
transforms the files one after another. The cache is opened once per run, which has a row of its own; its epochs read
the mapped files, or what was read into memory. All files, the cohort's as well as the cache's, lie in the system's
page cache.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import machine, print_table, times

from medaug.cohort.manifest import Manifest
from medaug.data.cases import ModelCase, load_cases, read_case, read_grids
from medaug.data.preprocessing import fit_preprocessing
from medaug.options import DataOptions
from medaug.paths import manifests_dir

FULL = "full preprocessing"
TARGET = 10


def main(root: Path) -> None:
    """Print a table of seconds per epoch and their ratios."""
    manifest = Manifest.load(manifests_dir() / "hippocampus.json", root)
    train = manifest.split("train")
    space = fit_preprocessing(read_grids(manifest, train), DataOptions(shape=[40, 56, 40]), multiple=(8, 8, 8))

    def full() -> float:
        total = 0.0
        for case in train:
            host, label = read_case(manifest, case)
            image, placement = space.apply_image(host.array, host.affine)
            total += float(image[0, 0, 0, 0])
            total += 0 if label is None else float(space.apply_label(label, placement)[0, 0, 0])
        return total

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        disk = load_cases(manifest, train, space, cache)
        memory = load_cases(manifest, train, space, cache, memory=True)

        def handed_over(cases: list[ModelCase]) -> float:
            total = 0.0
            for case in cases:
                total += float(np.array(case.image)[0, 0, 0, 0])
                total += 0 if case.label is None else float(np.array(case.label)[0, 0, 0])
            return total

        def opened() -> float:
            return float(len(load_cases(manifest, train, space, cache)))

        epochs = {
            FULL: times(full, 5),
            "opening the cache": times(opened, 20),
            "epoch, disk": times(lambda: handed_over(disk), 20),
            "epoch, memory": times(lambda: handed_over(memory), 20),
        }

    print(f"{machine()}; n = {len(train)} scans")
    slow = statistics.median(epochs[FULL])
    print_table(epochs, "ratio", dict.fromkeys(epochs, slow))
    ratio = slow / statistics.median(epochs["epoch, disk"])
    print(f"target: an epoch from the disk at least {TARGET} times faster; {'met' if ratio >= TARGET else 'missed'}")


if __name__ == "__main__":
    default = Path(os.environ.get("MEDAUG_DATA", "data"), "Task04_Hippocampus")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
