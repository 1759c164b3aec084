"""Damaged files of a run folder, read by the functions that read them, or by the stages as a user runs them."""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import logging
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import fuzz_formats as formats
import fuzz_objects as objects
import numpy as np
import torch
from fuzz_formats import Mutator
from fuzz_kinds import CSV, JSON, SCHEMA, YAML, Corpus
from fuzz_runner import Kind
from helpers import model_options

from medaug.cohort import provenance
from medaug.cohort.provenance import Recipe
from medaug.comparison.job import Job
from medaug.comparison.jobs import gather
from medaug.comparison.results import Benchmark, save_comparisons
from medaug.comparison.scores import COLUMNS as SCORE_COLUMNS
from medaug.csv_files import write_csv
from medaug.data.cache import content_digests, read_entry, write_entry
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.launcher import run
from medaug.runs import claim, finish, finished
from medaug.segmentation.nets import build_unet
from medaug.segmentation.unet import load_segmenter, save_segmenter
from medaug.training.checkpoint import Card, load_model

TORCH = (objects.tensor_value, objects.tensor_value, objects.zip_member, objects.zip_directory)
NPY = (formats.npy_header,)
CHANNELS = (4, 8)


def record_kinds(corpus: Corpus) -> None:
    """Checkpoints, segmenters, provenance, states of a run, scores and cached scans, each read by its own function."""
    identity = {"data": {"max_side": 32, "crop": "none"}, "trainer": {"max_steps": 8, "lr": 0.001}, "pairs": "ab12"}

    def checkpoint(folder: Path) -> Path:
        process = {"noise_schedule": "cosine", "prediction_type": "v_prediction", "num_train_timesteps": 100}
        options = model_options(process, channels=[8], attention=[False])
        preprocessing = Preprocessing((8, 8, 16), (1.0, 1.5, 2.0), (0.5, 99.5))
        subjects = {"train": ["a", "b"], "val": ["c"]}
        card = Card("fuzz", options, preprocessing, SCHEMA, ("T1", "T2"), subjects, True)
        state = {f"model.{key}": value for key, value in card.build().state_dict().items()}
        torch.save({"state_dict": state, "global_step": 3, "medaug": card.to_dict()}, folder / "last.ckpt")
        return folder / "last.ckpt"

    def segmenter(folder: Path) -> Path:
        save_segmenter(build_unet(2, 3, CHANNELS), folder / "judge.pt")
        return folder / "judge.pt"

    def records(folder: Path) -> Path:
        for index in range(4):
            recipe = Recipe(index, 0, "c0", "s0", "real", {}, 2.0, "ddim", 4, 0.0, index, "ab" * 32)
            files = {"name": f"p{index}", "images": [f"imagesTr/p{index}.nii.gz"], "label": f"labelsTr/p{index}.nii.gz"}
            provenance.append(folder / "provenance.jsonl", recipe.to_mapping() | files | {"subjects": ["s0"]})
        return folder / "provenance.jsonl"

    def read_records(path: Path) -> None:
        for record in provenance.read_all(path.parent, provenance.PAIR).values():
            Recipe.from_mapping(record)

    def state(name: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            claim(folder, identity, False)
            finish(folder, {"pairs": 4})
            return folder / name

        return make

    def scores(folder: Path) -> Path:
        for arm in ("real", "real+synthetic"):
            names = itertools.product([f"c{case}" for case in range(6)], ("core", "rim"), ("dice", "hd95"))
            path = Job(arm, 0).scores(folder)
            write_csv(path, SCORE_COLUMNS, [(arm, 0, *name, 0.5) for name in names])
            sign(path)
        return Job("real", 0).scores(folder)

    def sign(path: Path) -> None:
        path.with_suffix(".sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")

    def read_signed_scores(path: Path) -> None:
        sign(path)  # as if somebody had edited the digest too
        read_scores(path)

    def read_scores(path: Path) -> None:
        folder = path.parents[3]
        scores = gather([Job("real", 0), Job("real+synthetic", 0)], ["core", "rim"], folder)
        subjects = {f"c{case}": f"s{case}" for case in range(6)}
        arms, floor = ("real", "real+synthetic"), defaultdict[str, float](float)
        benchmark = Benchmark("demo", True, False, arms, (0,), 1, subjects, floor, 4, 4, 0, {}, scores)
        save_comparisons(folder / "comparison.csv", benchmark.compare([("real+synthetic", "real")]).comparisons)

    def entry(suffix: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            image, label = np.ones((1, 4, 5, 6), np.float32), np.ones((4, 5, 6), np.uint8)
            write_entry(folder / "ab12", image, label, {"owners": [{"case": "c", "subject": "s"}]})
            content_digests([folder / "ab12.image.npy"], folder)
            return folder / f"ab12{suffix}"

        return make

    def read_cached(path: Path) -> None:
        content_digests([path.parent / "ab12.image.npy"], path.parent)
        found = read_entry(path.parent / "ab12", memory=True)
        assert found is None or (found[0].dtype, found[0].shape) == (np.float32, tuple(found[2]["image"]))

    def load(path: Path) -> None:
        load_model(path, torch.device("cpu"))

    corpus.add("checkpoint", checkpoint, load, TORCH)
    corpus.add("checkpoint bomb", checkpoint, load, (objects.zip_bomb,))
    corpus.add("judge.pt", segmenter, lambda path: load_segmenter(path, 2, 3, CHANNELS), TORCH)
    corpus.add("judge.pt bomb", segmenter, lambda path: load_segmenter(path, 2, 3, CHANNELS), (objects.zip_bomb,))
    corpus.add("provenance .jsonl", records, read_records, JSON)
    corpus.add("finished.json", state("finished.json"), lambda path: finished(path.parent), JSON)
    corpus.add("config.yaml", state("config.yaml"), lambda path: claim(path.parent, identity, False), YAML, "work")
    corpus.add("scores.csv", scores, read_scores, CSV, "scores.csv")
    corpus.add("scores.csv, signed", scores, read_signed_scores, CSV, "scores.csv")
    corpus.add("cache .json", entry(".json"), read_cached, JSON)
    corpus.add("cache .npy", entry(".image.npy"), read_cached, NPY)


# File of a run, the stage that reads it and its arguments, and what is removed first so that the stage has work to do.
_FINISHED = "finished.json"
STAGES: tuple[tuple[str, str, Sequence[Mutator], Sequence[str]], ...] = (
    ("train/last.ckpt", "generate", TORCH, ("synthetic", "train/best.ckpt")),
    ("train/last.ckpt", "train", TORCH, (f"train/{_FINISHED}",)),
    ("train/best.ckpt", "generate", TORCH, ("synthetic",)),
    ("train/selector.pt", "train trainer.max_steps=9 trainer.score_every=1", TORCH, (f"train/{_FINISHED}",)),
    ("train/scores.csv", "train", CSV, (f"train/{_FINISHED}",)),
    ("train/validation.csv", "train trainer.max_steps=9", CSV, (f"train/{_FINISHED}",)),
    ("train/config.yaml", "train", YAML, ()),
    ("train/finished.json", "generate", JSON, ()),
    ("train/manifest.json", "generate", JSON, ("synthetic",)),
    ("synthetic/provenance.jsonl", "generate", JSON, (f"synthetic/{_FINISHED}",)),
    ("synthetic/provenance.jsonl", "audit", JSON, ("audit",)),
    ("synthetic/provenance.jsonl", "export format=msd out=elsewhere", JSON, ()),
    ("synthetic/manifest.json", "benchmark", JSON, ("benchmark",)),
    ("synthetic/config.yaml", "generate", YAML, ()),
    ("synthetic/finished.json", "audit", JSON, ()),
    ("audit/judge.pt", "audit", TORCH, (f"audit/{_FINISHED}",)),
    ("audit/faithfulness.json", "benchmark", JSON, ()),
    ("audit/config.yaml", "benchmark", YAML, ()),
    ("benchmark/config.yaml", "benchmark", YAML, ()),
    ("benchmark/finished.json", "benchmark", JSON, ()),
    ("benchmark/scores.csv", "benchmark", CSV, ()),
    ("benchmark/comparison.csv", "benchmark", CSV, ()),
    ("benchmark/summary.json", "benchmark", JSON, ()),
    ("benchmark/jobs/*/seed_0/scores.csv", "benchmark", CSV, (f"benchmark/{_FINISHED}",)),
    ("cache/*.json", "generate", JSON, ("synthetic",)),
    ("cache/*.image.npy", "generate", NPY, ("synthetic",)),
    ("cache/files.index", "generate", JSON, ("synthetic",)),
    ("exports.jsonl", "ingest withdraw=Phantom_001", JSON, ()),
    ("synthetic/provenance.jsonl", "ingest withdraw=Phantom_001", JSON, ()),
    ("cache/*.json", "ingest withdraw=Phantom_001", JSON, ()),
    ("benchmark/summary.json", "ingest withdraw=Phantom_001", JSON, ()),
)


def stage_kinds(template: Path, home: Path, experiment: str) -> list[Kind]:
    """A kind for every file of a finished run and every stage that reads it.

    Args:
        template: folder in which all stages of the experiment were run at preset=smoke, so that it holds `runs`.
        home: where the trials take place; paths in the run's files may lead to it.
        experiment: its name.
    """
    kinds = []
    for pattern, words, knows, removed in STAGES:
        found = sorted((template / "runs" / experiment).glob(pattern))
        if not found:
            continue
        stage, *rest = words.split()
        arguments = [*rest, "runs=runs"] if stage == "ingest" else [f"experiment={experiment}", "preset=smoke", *rest]
        reader = _Stage(stage, arguments, home / "runs" / experiment, removed)
        name = f"{stage}: {pattern.replace('/*', '')}"
        kinds.append(Kind(name, template, home, str(found[0].relative_to(template)), reader, knows, "error: ", 120.0))
    return kinds


class _Stage:
    """Runs a stage on a damaged run; if it refuses something, raises the line that it printed."""

    def __init__(self, stage: str, words: Sequence[str], folder: Path, removed: Sequence[str]) -> None:
        self.stage, self.words, self.folder, self.removed = stage, list(words), folder, removed

    def __call__(self, path: Path) -> None:
        for name in self.removed:
            target = self.folder / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        body = importlib.import_module(f"medaug.{self.stage}").main
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(said):
            code = run(self.stage, body, self.words)
            logging.shutdown()
        sys.stderr.flush()
        lines = said.getvalue().splitlines()
        assert not any("Traceback" in line for line in lines), said.getvalue()
        if code == 0:
            return
        assert code == 2, (code, said.getvalue())
        errors = [line for line in lines if line.startswith(f"medaug {self.stage}: error: ")]
        assert len(errors) == 1 == lines[-1:].count(errors[0]), said.getvalue()
        assert any(part in errors[0] for part in (path.name, path.parent.name, path.parents[1].name)), errors[0]
        raise UserError(errors[0])
