"""Time the ingest of large cohorts: NIfTI headers, NIfTI voxels, DICOM headers.

python benchmarks/ingest.py [folder that holds Task04_Hippocampus and dicom]

The NIfTI cohort is the hippocampus volumes, copied under new names until there are 1,000 cases of image and label; the
DICOM tree is the study, copied until there are 2,000 files. Whole commands are timed, from the start of Python to the
manifest, so a second or so of each is start-up. All files lie in the system's page cache.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, print_table, times

from medaug.dicom.headers import scan_tree

CASES, FILES = 1000, 2000


def copy_pairs(source: Path, root: Path) -> None:
    """CASES pairs images/case_NNNN.nii.gz, labels/case_NNNN.nii.gz."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))
    for number, name in zip(range(CASES), itertools.cycle(names), strict=False):
        shutil.copy(source / "imagesTr" / name, root / "images" / f"case_{number:04d}.nii.gz")
        shutil.copy(source / "labelsTr" / name, root / "labels" / f"case_{number:04d}.nii.gz")


def copy_tree(source: Path, root: Path) -> int:
    """About FILES files in copies of the study; how many they are."""
    size = sum(path.is_file() for path in source.rglob("*"))
    for number in range(-(-FILES // size)):
        shutil.copytree(source, root / f"copy_{number:03d}")
    return size * -(-FILES // size)


def ingest(out: Path, *words: str) -> None:
    """Run the stage; its manifest is made anew each time."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "medaug.ingest", f"out={out}", *words]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def main(data: Path) -> None:
    """Print a table of seconds and of cases or files per second."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy_pairs(data / "Task04_Hippocampus", work / "pairs")
        files = copy_tree(data / "dicom", work / "dicom")
        pairs = [f"root={work / 'pairs'}", "layout=pairs", "images=images/*.nii.gz", "labels=labels/*.nii.gz"]
        pairs += ["classes=[background,anterior,posterior]", "check=headers"]
        msd = [f"root={data / 'Task04_Hippocampus'}", r"subject_pattern=(\d+)$", "subject_consecutive=2"]
        headers, voxels = f"{CASES} NIfTI cases, headers", "199 NIfTI cases, all voxels"
        tree, alone = f"{files} DICOM files, headers", "the same in one process"
        rows = {
            headers: times(lambda: ingest(work / "a.json", *pairs), 5),
            voxels: times(lambda: ingest(work / "b.json", *msd), 5),
            tree: times(lambda: scan_tree(work / "dicom"), 5),
            alone: times(lambda: scan_tree(work / "dicom", workers=1), 5),
        }
    print(machine())
    print_table(rows, "per second", {headers: CASES, voxels: 199, tree: files, alone: files})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.environ.get("MEDAUG_DATA", "data")))
