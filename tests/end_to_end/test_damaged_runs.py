"""Damaged files of earlier stages: each gives one line with its name, and nothing is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from test_bad_input import assert_refused


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rubbish(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


READ = [
    ("generate", "train/last.ckpt", pipe),
    ("generate", "train/last.ckpt", folder),
    ("generate", "train/manifest.json", cut),
    ("generate", "train/finished.json", rubbish),
    ("generate", "synthetic/config.yaml", rubbish),
    ("generate", "synthetic/finished.json", cut),
    ("audit", "synthetic/manifest.json", pipe),
    ("audit", "synthetic/provenance.jsonl", rubbish),
    ("audit", "audit/config.yaml", folder),
    ("benchmark", "train/last.ckpt", cut),
    ("benchmark", "synthetic/finished.json", pipe),
    ("benchmark", "benchmark/scores.csv", rubbish),
    ("benchmark", "benchmark/summary.json", cut),
    ("benchmark", "benchmark/comparison.csv", rubbish),
    ("benchmark", "audit/faithfulness.json", folder),
    ("export", "synthetic/provenance.jsonl", pipe),
    ("train", "train/finished.json", folder),
    ("train", "train/config.yaml", pipe),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "file", "harm"), READ, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_file_of_a_run_is_named(demo, tmp_path, stage, file, harm):
    shutil.copytree(demo.home / "runs", tmp_path / "runs")
    harm(tmp_path / "runs" / "demo" / file)
    before = listing(tmp_path / "runs")
    copy = type(demo)("demo", tmp_path)
    done = copy.run(stage, *(("out=exported",) if stage == "export" else ()))
    assert_refused(done, stage, file.rpartition("/")[2])
    assert listing(tmp_path / "runs") == before and not (tmp_path / "exported").exists()


def listing(root: Path) -> dict[str, int | None]:
    """Sizes of files by path, without locks, markers, logs and the digests that the cache stores."""
    return {
        str(path.relative_to(root)): path.stat().st_size if path.is_file() else None
        for path in root.rglob("*")
        if not path.name.startswith(".") and path.name != "files.index" and path.suffix != ".log"
    }


@pytest.mark.slow
def test_a_home_folder_in_quotes_is_the_home_folder(stage, tmp_path, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    words = ("experiment=demo", "preset=smoke", "trainer.max_steps=2", "runs=~/my runs")
    done = stage("train", *words, home=work)
    assert done.returncode == 0, done.stderr
    assert (home / "my runs" / "demo" / "train" / "last.ckpt").exists()
    assert not list(work.iterdir())
