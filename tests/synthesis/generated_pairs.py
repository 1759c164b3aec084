"""A small cohort with scanners' grids and types, a model with random weights, and pairs that it generates."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import NO_ATTRIBUTES
from medaug.data.cases import load_cases
from medaug.data.preprocessing import Preprocessing
from medaug.imaging.nifti import write_volume
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis.generation import (
    generate_pairs,
)
from medaug.synthesis.pairs import Pairs
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.sources import load_masks
from medaug.training.checkpoint import Card

SCHEMA = LabelSchema(((0, "background"), (2, "shell"), (4, "core")))


NUM = 5


def affine(spacing, angle=0.2, flip=False):
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag(np.array(spacing) * ([-1, 1, 1] if flip else [1, 1, 1]))
    matrix[:3, 3] = (-12.5, 30, 7)
    return matrix


# Grids, orientations and types that scanners write; all near 16 mm a side, so that one model grid holds them.
HOSTS = {
    "plain": ((16, 16, 16), affine((1, 1, 1), 0), ("int16", "int16")),
    "turned": ((15, 17, 9), affine((1.1, 0.9, 1.8)), ("float32", "float32")),
    "flipped": ((16, 14, 18), affine((1, 1.2, 0.9), -0.1, True), ("uint8", "uint8")),
    "axes": ((9, 16, 15), affine((1.8, 1, 1))[:, [2, 0, 1, 3]], ("uint16", "uint16")),
    "mixed": ((16, 16, 16), affine((1, 1, 1)), ("int16", "float32")),
}


def write(index, hosts, generate, masks, sampler, checkpoint, attributes=NO_ATTRIBUTES):
    return Recipes(hosts, load_masks(masks), generate, sampler, masks.source, checkpoint, attributes)(index)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    cases = []
    for name, (shape, matrix, dtypes) in HOSTS.items():
        places = (np.indices(shape).T - np.array(shape) / 2) / np.array(shape)
        distance = np.sqrt((places**2).sum(-1)).T
        label = np.select([distance < 0.15, distance < 0.3], [4, 2], 0).astype(np.uint8)
        write_volume(root / f"{name}_label.nii.gz", label, matrix)
        for m, dtype in enumerate(dtypes):
            image = 100 + 30 * label * (m + 1) + rng.normal(0, 8, shape)
            image = image / 100 if dtype == "float32" else image
            write_volume(root / f"{name}_{m}.nii.gz", image.clip(0, 255).astype(dtype), matrix)
        files = tuple(f"{name}_{m}.nii.gz" for m in range(2))
        cases.append(Case(name, files, f"{name}_label.nii.gz", f"subject_{name}"))
    return Manifest("toy", "", ("T1", "T2"), SCHEMA, tuple(cases), str(root))


@pytest.fixture(scope="module")
def card() -> Card:
    space = Preprocessing((16, 16, 16), (1.0, 1.0, 1.0), (0.5, 99.5))
    return Card("toy", model_options(), space, SCHEMA, ("T1", "T2"), {"train": [], "val": []}, phantom=False)


@pytest.fixture(scope="module")
def model(card):
    # Random weights everywhere: a fresh network ends in zeros and would ignore its input.
    torch.manual_seed(0)
    model = card.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def make(cohort, card, model, tmp_path_factory):
    hosts = load_cases(cohort, cohort.cases, card.preprocessing, tmp_path_factory.mktemp("cache"))

    def plan(index, first_attempt=0):
        sampler = SamplerOptions(num_inference_steps=2)
        return write(index, hosts, GenerateOptions(), MasksOptions(rotation=2.0, elastic=0.3), sampler, "sum")

    def run(folder: Path, num=NUM, batch_size=2, rank=0, ranks=1):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RANK", str(rank))
            environment.setenv("WORLD_SIZE", str(ranks))
            generate_pairs(model, card, plan, num, batch_size, folder)
        return Pairs.collect(card, folder, num).manifest

    return run


@pytest.fixture(scope="module")
def made(make, tmp_path_factory):
    return make(tmp_path_factory.mktemp("synthetic"))


def read(path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
