"""Confidence maps: where an ensemble doubts a mask, how pairs carry that, and who ignores it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from generated_pairs import NUM, files, read

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.data.cases import load_cases, without_doubt
from medaug.errors import UserError
from medaug.exporting.nnunet import write_nnunet
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions, ScreenOptions
from medaug.screening.confidence import doubt
from medaug.screening.rules import Sample
from medaug.screening.screen import Screen
from medaug.synthesis.generation import Screening, generate_pairs
from medaug.synthesis.pairs import Pairs
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.sources import load_masks


class Planted(torch.nn.Module):
    """Says class 2 with the given probability, and class 1 otherwise, wherever the first modality is positive."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.odds = torch.nn.Parameter(torch.tensor([1 - probability, probability]).log())

    def forward(self, image):
        lesion = (image[:, :1] > 0).float()
        return torch.cat([(1 - lesion) * 9, *(lesion * (odd + 9) for odd in self.odds)], 1)


def test_the_mean_of_an_ensemble_is_compared_with_the_mask_inside_the_host():
    image = np.full((2, 4, 4, 4), -1, np.float32)
    image[0, 1:3] = 1
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3, :2], mask[1, 2], mask[3, 3] = 2, IGNORE, 1
    sample = Sample(image, mask, (slice(0, 4), slice(0, 4), slice(0, 3)))
    expected = np.zeros_like(mask)
    expected[1:3, 2:, :3] = 1  # class 2 is seen and background said
    expected[1, 2], expected[3, 3] = 0, [1, 1, 1, 0]
    # One of three is sure of class 2, and two lean to class 1: the mean of the probabilities is what counts.
    np.testing.assert_array_equal(doubt([Planted(0.99), Planted(0.4), Planted(0.4)], sample), expected)
    swapped = doubt([Planted(0.2), Planted(0.4)], sample)
    assert swapped[1:3, :2, :3].all() and not swapped[..., 3].any()


@pytest.fixture(scope="module")
def run(cohort, card, model, tmp_path_factory):
    hosts = load_cases(cohort, cohort.cases, card.preprocessing, tmp_path_factory.mktemp("cache"))
    sampler = SamplerOptions(num_inference_steps=2)
    recipes = Recipes(hosts, load_masks(MasksOptions(source="real")), GenerateOptions(), sampler, "real", "sum")

    def generate(folder: Path, maps: bool = True) -> Pairs:
        ensemble = [Planted(0.9)] if maps else []
        rules = Screening(Screen({}, {}, None, ScreenOptions()), "fitted", 0, False, ensemble)
        generate_pairs(model, card, recipes, NUM, 2, folder, None, rules)
        return Pairs.collect(card, folder, NUM)

    return generate


@pytest.mark.slow
def test_pairs_carry_a_map_that_their_records_and_manifest_name(run, card, tmp_path):
    pairs, plain = run(tmp_path / "maps"), run(tmp_path / "plain", maps=False)
    assert not [name for name in files(tmp_path / "plain") if name.startswith("confidence")]
    for case, record, other in zip(pairs.manifest.cases, pairs.records, plain.records, strict=True):
        assert case.confidence == record["confidence"] == f"confidenceTr/{case.name}.nii.gz"
        assert record["contents"].items() > other["contents"].items() and case.confidence in record["contents"]
        confidence, image = (nib.load(tmp_path / "maps" / file) for file in (case.confidence, case.images[0]))
        np.testing.assert_array_equal(confidence.affine, image.affine)
        assert confidence.shape == image.shape and set(np.unique(read(tmp_path / "maps" / case.confidence))) == {0, 1}
        assert b"synthetic, recipe" in confidence.header["descrip"].item()
    before = {name: path.read_bytes() for name, path in files(tmp_path / "maps").items()}
    (tmp_path / "maps" / pairs.manifest.cases[3].confidence).unlink()
    lines = (tmp_path / "maps/provenance.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "maps/provenance.jsonl").write_text("".join(lines[:3]))  # killed while the fourth was written
    run(tmp_path / "maps")
    assert {name: path.read_bytes() for name, path in files(tmp_path / "maps").items()} == before
    pairs.manifest.save(tmp_path / "maps/manifest.json")
    again = Manifest.load(tmp_path / "maps/manifest.json")
    assert again.cases == pairs.manifest.cases and len(again.files(again.cases[0])) == 4


@pytest.mark.slow
def test_segmenters_ignore_what_a_map_doubts(run, card, tmp_path):
    manifest = run(tmp_path / "pairs").manifest
    cases = load_cases(manifest, manifest.cases, card.preprocessing, tmp_path / "cache")
    trusted = without_doubt(manifest, cases, card.preprocessing)
    at_home = next(
        i for i, record in enumerate(provenance.read_all(tmp_path / "pairs").values()) if record["host"] == "plain"
    )
    map_ = read(tmp_path / "pairs" / manifest.cases[at_home].confidence)  # on the model's own grid
    expected = np.where(map_ == 0, IGNORE, cases[at_home].label)
    np.testing.assert_array_equal(trusted[at_home].label, expected)
    assert 0 < (map_ == 0).mean() < 1 and all((case.label == IGNORE).any() for case in trusted)
    weighted = without_doubt(manifest, cases, card.preprocessing, 0.2)[at_home]
    assert weighted.weight is not None and weighted.label is cases[at_home].label
    np.testing.assert_array_equal(weighted.weight, np.where(map_ == 0, 51, 255))
    without = [replace(case, case=replace(case.case, confidence=None)) for case in cases]
    assert without_doubt(manifest, without, card.preprocessing) == without
    write_volume(tmp_path / "pairs" / manifest.cases[at_home].confidence, map_ * 2, cases[at_home].affine)
    with pytest.raises(UserError, match="a confidence map holds other values than 0 and 1; restore it"):
        without_doubt(manifest, cases, card.preprocessing)


def exported(folder: Path, confidence: bool = True) -> tuple[Path, np.ndarray]:
    """Three cases of a schema without an ignored value, of which the first has a map; the map."""
    rng = np.random.default_rng(0)
    map_ = rng.integers(0, 2, (9, 8, 6)).astype(np.uint8)
    cases = []
    for name, split in (("a", "train"), ("b", "train"), ("c", "val")):
        write_volume(folder / f"{name}.nii.gz", rng.integers(0, 900, map_.shape).astype(np.int16), np.eye(4))
        write_volume(folder / f"{name}_seg.nii.gz", rng.choice([0, 2, 5], map_.shape).astype(np.uint8), np.eye(4))
        cases.append(Case(name, (f"{name}.nii.gz",), f"{name}_seg.nii.gz", name, split))
    write_volume(folder / "map.nii.gz", map_, np.eye(4))
    cases[0] = replace(cases[0], confidence="map.nii.gz")
    schema = LabelSchema(((0, "background"), (2, "shell"), (5, "core")))
    manifest = Manifest("toy", "", ("T1",), schema, tuple(cases), str(folder))
    out = folder / f"Dataset50{int(confidence)}_Toy"
    write_nnunet(Export(manifest, out, confidence=confidence))
    return out, map_


def test_nnunet_gets_the_ignore_label_where_a_map_doubts(tmp_path):
    out, map_ = exported(tmp_path)
    assert json.loads((out / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "shell": 1,
        "core": 2,
        "ignore": 3,
    }
    label = read(out / "labelsTr/a.nii.gz")
    np.testing.assert_array_equal(label == 3, map_ == 0)
    indices = np.searchsorted([0, 2, 5], read(tmp_path / "a_seg.nii.gz"))
    np.testing.assert_array_equal(label[map_ == 1], indices[map_ == 1])
    assert 3 not in read(out / "labelsTr/b.nii.gz")
    plain, _ = exported(tmp_path, confidence=False)
    assert "ignore" not in json.loads((plain / "dataset.json").read_text())["labels"]
    np.testing.assert_array_equal(read(plain / "labelsTr/a.nii.gz"), indices)
