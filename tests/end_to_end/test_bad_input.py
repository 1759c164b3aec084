"""Mistakes of users and full disks, through the command line: one clear line, and no partial files."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from medaug.cohort import provenance
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volume

LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


def write_toy_cohort(root: Path, num: int = 5) -> Path:
    """An MSD task of `num` tiny scans, each a subject of its own, with splits."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(num):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:10, 4:10, 4:8], label[4:10, 4:10, 8:12] = 1, 2
        write_volume(
            root / f"imagesTr/toy_{i}.nii.gz", (label * 90 + rng.normal(50, 9, label.shape)).astype("i2"), np.eye(4)
        )
        write_volume(root / f"labelsTr/toy_{i}.nii.gz", label, np.eye(4))
        split = {num - 1: "test", num - 2: "val"}.get(i, "train")
        names = {"image": f"./imagesTr/toy_{i}.nii.gz", "label": f"./labelsTr/toy_{i}.nii.gz"}
        cases.append({**names, "subject": f"toy_{i}", "split": split})
    path = root / "dataset.json"
    path.write_text(json.dumps({"name": "toy", "modality": {"0": "MRI"}, "labels": LABELS, "training": cases}))
    return path


def change(path: Path, value: float, dtype: str) -> None:
    volume = read_volume(path)
    array = volume.array.astype(dtype)
    array[5, 5, 5] = value
    write_volume(path, array, volume.affine)


def crop(path: Path) -> None:
    volume = read_volume(path)
    write_volume(path, volume.array[:-2], volume.affine)


def empty(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"training": []}))


FAULTS = {
    "shape": ("labelsTr/toy_1.nii.gz", crop, "shape 14x16x16 against 16x16x16 of toy_1.nii.gz"),
    "values": ("labelsTr/toy_1.nii.gz", lambda p: change(p, 7, "u1"), "label values 7 are not in the schema"),
    "nan": ("imagesTr/toy_1.nii.gz", lambda p: change(p, np.nan, "f4"), "holds NaN or infinite values"),
    "zero bytes": ("imagesTr/toy_1.nii.gz", lambda p: p.write_bytes(b""), "is empty (zero bytes)"),
    "truncated": ("imagesTr/toy_1.nii.gz", lambda p: p.write_bytes(p.read_bytes()[:-900]), "is cut short or damaged"),
    "missing": ("labelsTr/toy_1.nii.gz", lambda p: p.unlink(), "no such file"),
    "empty manifest": ("dataset.json", empty, "the manifest is empty"),
}


def assert_refused(done, stage: str, *message: str) -> str:
    """Check exit status 2 and exactly one error line besides the log; return that line."""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith(f"medaug {stage}: error: ")]
    others = [line for line in lines if line not in errors and not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert done.returncode == 2 and len(errors) == 1 and not others and lines[-1] == errors[0], done.stderr
    for words in message:
        assert words in errors[0], errors[0]
    return errors[0]


_CLAIMS = {".lock", "config.yaml", ".medaug-run"}


def leftovers(folder: Path) -> list[str]:
    """Files that a failed stage left, without its log and those that claim the folder."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name not in _CLAIMS and p.suffix != ".log"]
    return [str(p.relative_to(folder)) for p in found]


@pytest.mark.slow
def test_an_unknown_experiment_names_the_nearest(stage, tmp_path):
    done = stage("train", "experiment=hippocampos", start_new_session=False)  # without starting a warm interpreter
    assert_refused(done, "train", "did you mean hippocampus or hippocampus_few?", "brats, cohort, demo")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_data_give_a_message_with_both_remedies(stage, tmp_path):
    for experiment, source in (("brats", "synapse.org"), ("hippocampus", "medicaldecathlon.com")):
        done = stage("train", f"experiment={experiment}")
        assert_refused(done, "train", "the scans are missing", source, "data=phantom")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_stage_out_of_order_names_the_missing_stage(stage, tmp_path):
    assert_refused(stage("generate", "experiment=demo"), "generate", "not trained yet", "make train EXP=demo")
    assert_refused(stage("export", "experiment=demo", "out=x"), "export", "run medaug.generate first")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_training_on_faulty_data(stage, tmp_path, fault):
    manifest = write_toy_cohort(tmp_path / "data")
    file, plant, message = FAULTS[fault]
    plant(tmp_path / "data" / file)
    words = ("experiment=hippocampus", "preset=smoke", f"data.manifest={manifest}", f"data.roots=[{manifest.parent}]")
    line = assert_refused(stage("train", *words), "train", message)
    assert file.rpartition("/")[2] in line and ";" in line  # the file, and the remedy
    assert leftovers(tmp_path / "runs" / "hippocampus" / "train") == []
    assert not list(tmp_path.rglob(".tmp*"))


@pytest.mark.slow
def test_ingest_lists_every_planted_fault_and_writes_no_manifest(stage, tmp_path):
    write_toy_cohort(tmp_path / "data", num=7)
    message = {}
    for i, name in enumerate(["shape", "values", "nan", "zero bytes", "truncated"]):
        file, plant, message[i] = FAULTS[name]
        plant(tmp_path / "data" / file.replace("toy_1", f"toy_{i}"))
    done = stage("ingest", "root=data", "out=toy.json")
    assert_refused(done, "ingest", "toy.json: not written; correct the 5 error(s) listed above")
    for i, words in message.items():
        words = words.partition(" of ")[0]
        assert any(f"toy_{i}" in line and words in line for line in done.stderr.splitlines()), (words, done.stderr)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_the_checkpoint_of_another_experiment(demo, stage, tmp_path):
    shutil.copytree(demo.folder / "train", tmp_path / "runs" / "hippocampus" / "train")
    done = stage("generate", "experiment=hippocampus", "preset=smoke")
    assert_refused(done, "generate", "last.ckpt: belongs to experiment demo, not hippocampus", "train that one first")
    assert {p.name for p in (tmp_path / "runs" / "hippocampus").iterdir()} == {"logs", "train"}


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_truncated_checkpoint(demo, stage, tmp_path, part):
    shutil.copytree(demo.folder / "train", tmp_path / "runs" / "demo" / "train")
    path = tmp_path / "runs" / "demo" / "train" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    done = stage("generate", "experiment=demo", "preset=smoke")
    assert_refused(done, "generate", "last.ckpt: not a whole checkpoint", "train again")
    assert {p.name for p in (tmp_path / "runs" / "demo").iterdir()} == {"logs", "train"}


def mounted(folder: Path, size: int) -> bool:
    """Mount a file system of `size` bytes at `folder`; returns False if this fails, because it needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_full_disk_while_pairs_are_written(demo, stage, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    # Room for the copied files and some images of pairs; without root, limit the size of every file instead.
    copied = [*(demo.folder / "train").glob("*.*"), *(demo.folder / "cache").iterdir()]
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in copied if path.is_file())
    images = list((demo.folder / "synthetic" / "imagesTr").iterdir())
    pair = sum(path.stat().st_size for path in images) // 4
    small = mounted(folder, size + 80_000 + 2 * pair)
    limit = {} if small else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (pair // 16,) * 2)}
    try:
        for name in ("train", "cache"):
            (folder / "runs" / "demo" / name).mkdir(parents=True)
        for path in copied:
            if path.is_file():
                shutil.copy2(path, folder / "runs" / "demo" / path.parent.name)
        copy = type(demo)("demo", folder)
        words = ("experiment=demo", "preset=smoke", "batch_size=1")
        done = stage("generate", *words, home=folder, **limit)
        assert_refused(done, "generate", "the disk is full; free some space and run the same command again")
        made = list(provenance.read(copy.folder / "synthetic" / "provenance.jsonl").values())
        assert len(made) < 4 and (not small or made)
        assert not list(folder.rglob(".tmp*")) and not (copy.folder / "synthetic" / "manifest.json").exists()
        for path in (copy.folder / "synthetic").rglob("*.nii.gz"):
            read_volume(path)  # complete, with a valid checksum
        if small:
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        done = stage("generate", *words, home=folder)
        assert done.returncode == 0, done.stderr
        expected = provenance.read(demo.folder / "synthetic" / "provenance.jsonl")
        assert provenance.read(copy.folder / "synthetic" / "provenance.jsonl") == expected
    finally:
        if small:
            subprocess.run(["umount", str(folder)], check=False)
