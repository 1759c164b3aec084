"""A thousand damaged files through the real command line: findings, never a traceback, a hang, or too much memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import yaml
from dicom_files import uid, write_enhanced, write_series
from dicom_tree import compress, write_rtstruct
from fuzz import mutate
from scipy import ndimage
from seg_files import write_seg

NUM = 500
LIMIT = 2 * 2**30  # bytes of resident memory, of all processes together
SECONDS = 150.0  # far more than it takes
WORDS = ("workers=2", "report=report.json", "out=cohort.json")


@dataclass(frozen=True)
class Damage:
    """A damaged file, and whether the damage must be noticed."""

    path: Path
    kind: str
    certain: bool


@dataclass(frozen=True)
class Ran:
    """How a run ended: exit status, standard error, seconds, and the peaks of memory in bytes (all, the largest)."""

    code: int
    stderr: str
    seconds: float
    together: int
    largest: int


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += tree_of(int(child))
    except OSError:
        pass
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """Current and peak resident bytes of a process; 0 if it has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        now, most = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, IndexError):
        return 0, 0
    return now, most


def ingest(home: Path, *words: str) -> Ran:
    """Run the stage and sample the memory of its processes every 50 ms."""
    command = [sys.executable, "-m", "medaug.ingest", *words]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks: list[tuple[int, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen = [memory_of(pid) for pid in tree_of(process.pid)]
            peaks.append((sum(now for now, _ in seen), max(most for _, most in seen)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        stderr = process.communicate(timeout=SECONDS)[1]
    finally:
        over.set()
        watcher.join()
        process.kill()
        process.wait()
    together, largest = (max(column) for column in zip(*peaks, strict=True))
    return Ran(process.returncode, stderr, time.monotonic() - start, together, largest)


def judge(ran: Ran, damages: list[Damage], found: set[Path]) -> None:
    counts = Counter(damage.kind for damage in damages if damage.path in found)
    totals = Counter(damage.kind for damage in damages)
    shares = ", ".join(f"{kind} {counts[kind]}/{total}" for kind, total in sorted(totals.items()))
    print(
        f"found {counts.total()} of {len(damages)} damaged files ({shares}) in {ran.seconds:.1f} s;"
        f" memory at most {ran.together / 2**20:.0f} MiB together, {ran.largest / 2**20:.0f} MiB in one process"
    )
    assert ran.code == 2 and "Traceback" not in ran.stderr, ran.stderr[-3000:]
    assert ran.stderr.splitlines()[-1].startswith("medaug ingest: error: cohort.json: not written; correct the ")
    assert sum(line.startswith("medaug ingest: error: ") for line in ran.stderr.splitlines()) == 1
    missed = [damage for damage in damages if damage.certain and damage.path not in found]
    assert not missed, missed[:5]
    assert counts.total() > 0.5 * len(damages)
    assert max(ran.together, ran.largest) < LIMIT


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def wrong_checksum(content: bytes, rng: random.Random) -> bytes:
    place = len(content) - rng.randrange(5, 9)
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def nifti_contents(folder: Path) -> dict[str, Callable[[int, str], bytes]]:
    """By suffix: how the scan or label of a seed is written."""
    kinds: dict[str, Callable[[int, str], bytes]] = {}
    for suffix in (".nii.gz", ".nii", ".mha", ".nrrd"):

        def make(seed: int, part: str, suffix: str = suffix) -> bytes:
            image = sitk.GetImageFromArray(faults.scan(seed)[part][::2, ::2].T)
            path = folder / f"x{suffix}"
            sitk.WriteImage(image, str(path), useCompression=suffix == ".nii.gz" or seed % 2 == 0)
            return path.read_bytes()

        kinds[suffix] = make
    return kinds


@pytest.mark.slow
def test_five_hundred_damaged_niftis(tmp_path):
    (tmp_path / "made").mkdir()
    makers = nifti_contents(tmp_path / "made")
    suffixes = (".nii.gz", ".nii", ".nii.gz", ".nii", ".mha", ".nrrd")
    damages = []
    for index in range(NUM + 20):
        rng, suffix, name = random.Random(index), suffixes[index % len(suffixes)], f"case_{index:04d}"
        part = "seg" if index % 5 == 4 else "t1"
        sound = makers[suffix](index, part)
        kind = "mutated"
        content = mutate(sound, index)
        if index >= NUM:
            kind, content = "sound", sound
        elif index // 6 % 4 == 0:
            kind, content = "cut", cut(sound, rng)
        elif index // 6 % 8 == 1:
            kind, content = "empty", b""
        elif index // 6 % 8 == 2 and suffix == ".nii.gz":
            kind, content = "checksum", wrong_checksum(sound, rng)
            with pytest.raises(gzip.BadGzipFile):
                gzip.decompress(content)
        path = tmp_path / "data" / ("labels" if part == "seg" else "images") / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if part == "seg":
            (tmp_path / "data" / "images" / path.name).write_bytes(makers[suffix](index, "t1"))
        damages.append(Damage(path, kind, kind in {"cut", "empty", "checksum"}))
    words = ("images=images/*", "labels=labels/*", "classes=[background,core,two,three,rim]")
    ran = ingest(tmp_path, "root=data", *words, *WORDS)
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    wrong = {finding["case"] for finding in findings if finding["severity"] == "error"}
    wrong |= {finding["case"] for finding in findings if finding["code"] == "unlike-cohort"}
    found = {damage.path for damage in damages if damage.path.name.partition(".")[0] in wrong}
    sound = {damage.path for damage in damages if damage.kind == "sound"}
    assert not found & sound
    judge(ran, damages[:NUM], found)


KINDS = ["plain"] * 20 + ["rle"] * 6 + ["jpeg"] * 6 + ["j2k"] * 6 + ["seg"] * 5 + ["rtstruct"] * 4 + ["enhanced"] * 3
RULES = {
    "modalities": {"T1": {"SeriesDescription": "t1"}},
    "structures": {"core": "core"},
    "labels": {0: "background", 1: "core"},
}


def write_study(folder: Path, index: int, kind: str, tool: Callable[[str], str]) -> Path:
    """A patient with a scan of four slices, and a label for some; returns the file to be damaged."""
    rng = np.random.default_rng(index)
    array = (500 * ndimage.gaussian_filter(rng.normal(size=(24, 20, 4)), 2) + rng.uniform(100, 130)).astype(np.int16)
    tags: dict[str, Any] = {"PatientID": f"P{index}", "SeriesDescription": "T1"}
    if kind == "enhanced":
        return write_enhanced(folder / "scan.dcm", array, **tags)
    names = "{}.dcm" if index % 3 else "IM{}"
    images = write_series(folder, array, names=names.format, **tags)
    mask = np.zeros(array.shape, np.uint8)
    mask[8:12, 8:12, 1:3] = 1
    if kind == "seg":

        def own(segmentation: pydicom.Dataset) -> None:
            segmentation.SeriesInstanceUID = uid("seg series", index)
            segmentation.SOPInstanceUID = segmentation.file_meta.MediaStorageSOPInstanceUID = uid("seg", index)

        return write_seg(folder / "seg.dcm", images, [mask], names=["core"], edit=own)
    if kind == "rtstruct":
        affine = np.array([[-1, 0, 0, 20], [0, -1, 0, 30], [0, 0, 3, -10], [0, 0, 0, 1.0]])
        box = np.array([(8, 12), (8, 12), (1, 3)])
        return write_rtstruct(folder / "rt.dcm", images[0], affine, {"core": [box]})
    if kind == "rle":
        compress(images)
    for image in images if kind in {"jpeg", "j2k"} else ():
        command = [tool("dcmcjpeg"), "+e1"] if kind == "jpeg" else [tool("gdcmconv"), "--j2k"]
        subprocess.run([*command, str(image), str(image) + ".new"], check=True, capture_output=True)
        Path(f"{image}.new").replace(image)
    return images[index % 4]


def cut_pixels(content: bytes, rng: random.Random) -> bytes:
    """Cut a file within the pixels, which come last; the last 8 bytes may be their delimiter."""
    place = content.rindex(b"\xe0\x7f\x10\x00")
    return content[: rng.randrange(place + 12, len(content) - 9)]


@pytest.mark.slow
def test_five_hundred_damaged_dicom_files(tmp_path, tool):
    damages, sound = [], []
    for index in range(NUM + 20):
        kind = KINDS[index % len(KINDS)]
        folder = tmp_path / "tree" / str(index // 50) / str(index)
        path = write_study(folder, index, kind, tool)
        if index >= NUM:
            sound.append(folder)
            continue
        rng, how, content = random.Random(index), "mutated", path.read_bytes()
        damaged = mutate(content, index)
        if index // 50 % 4 == 0 and kind != "rtstruct":
            how, damaged = "cut", cut_pixels(content, rng)
        elif index // 50 % 8 == 1 and path.suffix == ".dcm":
            how, damaged = "empty", b""
        path.write_bytes(damaged)
        damages.append(Damage(path, f"{kind} {how}", how != "mutated"))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES, sort_keys=False))
    ran = ingest(tmp_path, "root=tree", "layout=dicom", "rules=rules.yaml", *WORDS)
    problems = json.loads((tmp_path / "cohort.private.json").read_text())["problems"]
    found = {Path(file) for problem in problems for file in problem["files"]}
    report = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert len([f for f in report if f["code"].startswith("dicom-")]) == len(problems)
    assert not {path.parent for path in found} & set(sound)
    judge(ran, damages, found)
    assert str(tmp_path) not in ran.stderr
