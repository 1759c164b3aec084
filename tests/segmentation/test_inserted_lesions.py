"""The benchmark of inserted lesions: with an oracle in place of the segmenter, and as a whole on a toy run."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_options
from small_cohort import SCHEMA, write_case
from test_unet_backend import toy

from medaug.cohort.manifest import Manifest
from medaug.data.cases import load_cases
from medaug.data.preprocessing import Preprocessing
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis.composed import ComposedMasks
from medaug.synthesis.generation import Manner, generate_pairs
from medaug.synthesis.insertion import Insertion, edited_masks
from medaug.synthesis.masks import TrainingMasks
from medaug.synthesis.pairs import Pairs
from medaug.synthesis.recipes import Recipes
from medaug.training.checkpoint import Card

FOLDER = Path(__file__).parents[2] / "benchmarks"
SPEC = importlib.util.spec_from_file_location("inserted_lesions", FOLDER / "inserted_lesions.py")
assert SPEC is not None and SPEC.loader is not None
script = importlib.util.module_from_spec(SPEC)
with pytest.MonkeyPatch.context() as patched:
    patched.syspath_prepend(str(FOLDER))
    SPEC.loader.exec_module(script)


def test_an_oracle_finds_what_it_can_see():
    """The oracle sees voxels above 0.5, which no dim lesion has; each fold is judged by the other fold's oracle."""
    real, trained = [toy(i) for i in range(4)], []
    pairs = []
    for bright, host in zip((True, True, True, False), real, strict=True):
        image, label = host.image.copy(), host.label.copy()
        image[0, 14:, 14:, 14:], label[14:, 14:, 14:] = 0.9 if bright else 0.2, 2
        pairs.append((replace(host, image=image, label=label), host))

    def train(cases):
        trained.append({case.case.subject for case in cases})
        return lambda image: np.where(image[0] > 0.5, 2, 0)

    folds = {case.case.subject: i % 2 for i, case in enumerate(real)}
    found = script.compare(real, pairs, [2], folds, train)
    assert trained == [{"toy_1", "toy_3"}, {"toy_0", "toy_2"}]
    assert [hit for _, hit in found[0]] == [True] * 4
    assert sorted(found[1]) == [(8, False), (8, True), (8, True), (8, True)]
    figures = script.rates(*found)
    assert figures["inserted"] == 0.75 and figures["num_inserted"] == 4 and figures["real"] == 1
    assert figures["matched"] == 0 and np.isnan(figures["real_of_that_size"]), "real lesions are larger"
    assert figures["low"] == pytest.approx(0.194, abs=0.001) and figures["high"] == pytest.approx(0.994, abs=0.001)
    sizes = script.rates([(8, True), (9, False), (70, True)], [(8, True), (15, True), (64, False), (1, True)])
    assert sizes["real_of_that_size"] == pytest.approx((0.5 + 0.5 + 1) / 3) and sizes["matched"] == 0.75


@pytest.mark.slow
def test_the_script_runs_on_a_run_of_generate(tmp_path):
    cases = [write_case(tmp_path, name, name, seed=seed) for seed, name in enumerate("abcd")]
    cohort = Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), str(tmp_path))
    space = Preprocessing((8, 8, 8), None)
    options = model_options()
    card = Card("toy", options, space, SCHEMA, ("T1",), {"train": [], "val": []}, phantom=False)
    run, model = tmp_path / "run", card.build().eval()
    (run / "train").mkdir(parents=True)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 1, "medaug": card.to_dict()}, run / "train" / "last.ckpt")
    cohort.save(run / "train" / "manifest.json")
    hosts = load_cases(cohort, cohort.cases, space, tmp_path / "cache")
    generate = GenerateOptions(mode="insert", margin=0, resample=1)
    masks = edited_masks(ComposedMasks(MasksOptions(lesions=["lesion"]), (1,)), generate, ())
    source, sampler = masks.fitted(TrainingMasks.of(hosts)), SamplerOptions(num_inference_steps=1)
    source.inside_body = False  # the toy scans are all air
    recipes = Recipes(hosts, source, generate, sampler, "composed", "sum")
    generate_pairs(model, card, recipes, 4, 4, run / "synthetic", Manner(recipes.record, Insertion(cohort, 0, 1)))
    pairs = Pairs.collect(card, run / "synthetic", 4)
    pairs.save(run / "synthetic")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(script.Pairs, "load", lambda folder: pairs)
        words = [str(run), "--steps", "2", "--channels", "4", "8", "--work", str(tmp_path)]
        figures = script.main([*words, "--result", str(tmp_path / "result.json")])
    assert figures["num_inserted"] >= 4 and figures["num_real"] > 4 and 0 <= figures["inserted"] <= 1
    assert (tmp_path / "result.json").exists() and "common" in sys.modules
