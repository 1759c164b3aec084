"""Folders of pairs and of BraTS files to ingest, and checks of what ingest did."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import faults

from medaug.cohort.manifest import Manifest
from medaug.imaging.nifti import write_volume

ROOT = Path(__file__).parents[1]
Done = subprocess.CompletedProcess[str]
PAIRS = ("images=images/*.nii.gz", "labels=labels/*.nii.gz", "classes=[background,core,oedema,air,rim]")
QUICK = ("check=none",)
BRATS_2020 = ("t1", "t1ce", "t2", "flair", "seg")
BRATS_2023 = ("t1n", "t1c", "t2w", "t2f", "seg")


def one_worker(stage: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """The words for a stage; `ingest` gets one worker unless they say how many, as starting one takes the longest."""
    given = stage != "ingest" or any(word.startswith("workers=") for word in words)
    return words if given else (*words, "workers=1")


def write_brats(root: Path, names: list[str], separator: str = "_", parts: tuple[str, ...] = BRATS_2020) -> Path:
    for index, name in enumerate(names):
        scans = [faults.scan(10 * index), faults.scan(10 * index + 1)]
        arrays = [scans[0]["t1"], scans[1]["t1"], scans[0]["t2"], scans[1]["t2"], scans[0]["seg"]]
        for part, array in zip(parts, arrays, strict=True):
            write_volume(root / name / f"{name}{separator}{part}.nii.gz", array, faults.AFFINE)
    return root


def write_pairs(root: Path, num: int = 6, names: str = "case_{:02d}", label: str = "{}.nii.gz") -> Path:
    for index in range(num):
        made, name = faults.scan(index), names.format(index)
        write_volume(root / "images" / f"{name}.nii.gz", made["t1"], faults.AFFINE)
        write_volume(root / "labels" / label.format(name), made["seg"], faults.AFFINE)
    return root


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of everything below a folder."""
    files = [folder, *folder.rglob("*")]
    return {str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in files}


def finding_lines(done: Done) -> list[str]:
    """Return the lines of standard error that are findings, without the time."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stderr.splitlines()]
    return [line for line in lines if line.startswith(("error: ", "warning: ", "note: "))]


def splits(manifest: Manifest) -> dict[str, str]:
    return {case.name: case.split for case in manifest.cases}


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def assert_nothing_but(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
