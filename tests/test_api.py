"""The public API on a model that was never trained, which takes milliseconds to make."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import model_options
from torch.utils.data import DataLoader

import medaug
from medaug.data.cohorts import split_cohort
from medaug.data.contents import case_contents
from medaug.data.preprocessing import Preprocessing
from medaug.layouts import read_layout
from medaug.options import DataOptions
from medaug.phantoms.head import write_cohort
from medaug.synthesis.generation import generate_pairs
from medaug.training.checkpoint import Card

ROOT = Path(__file__).parents[1]
FAST = medaug.Sampling(steps=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/demo: phantoms and a model with random weights."""
    home = tmp_path_factory.mktemp("api")
    write_cohort(home / "phantoms", 4, (32, 32, 32), 0)
    cohort = split_cohort(read_layout(home / "phantoms", "brats2020").valid_manifest(), DataOptions(name="phantom"))
    train = home / "runs" / "demo" / "train"
    cohort.save(train / "manifest.json")
    options = model_options() | {"data": {}, "task": {}}
    space = Preprocessing((32, 32, 32), None)
    subjects = {split: sorted(cohort.subjects(split)) for split in ("train", "val")}
    contents = case_contents(cohort, [*cohort.split("train"), *cohort.split("val")], home / "runs" / "demo" / "cache")
    card = Card("demo", options, space, cohort.schema, cohort.modalities, subjects, True, contents=contents)
    torch.manual_seed(0)
    weights = {f"model.{name}": value for name, value in card.build().state_dict().items()}
    torch.save({"medaug": card.to_dict(), "state_dict": weights}, train / "last.ckpt")
    return home


@pytest.fixture
def run(home: Path) -> Path:
    return home / "runs" / "demo"


def by_index(pairs) -> dict[int, dict]:
    made = list(pairs)
    assert len({pair["index"] for pair in made}) == len(made)
    return {pair["index"]: pair for pair in made}


def assert_equal_pairs(one: dict[int, dict], other: dict[int, dict]) -> None:
    assert one.keys() == other.keys()
    for index, pair in one.items():
        assert pair["recipe"] == other[index]["recipe"]
        for key in ("image", "label"):
            assert torch.equal(pair[key].as_tensor(), other[index][key].as_tensor())


def test_importing_medaug_is_fast_and_imports_no_torch():
    code = "import sys, time; t = time.process_time(); import medaug; dir(medaug); t = time.process_time() - t\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(t)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3


def test_every_public_name_exists_and_others_do_not():
    assert all(getattr(medaug, name) is not None for name in medaug.__all__)
    assert set(medaug.__all__) <= set(dir(medaug))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        medaug.nothing  # noqa: B018


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(home, monkeypatch):
    monkeypatch.chdir(home)
    page = str(ROOT / "docs" / "api.md")
    result = doctest.testfile(page, module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 15 and result.failed == 0


@pytest.mark.slow
def test_a_sample_depends_on_its_mask_and_the_seed_alone(run):
    model = medaug.load(run)
    masks = np.zeros((2, 32, 32, 32), np.uint8)
    masks[:, 4:8, 4:8, 4:8] = 4
    both = model.sample(masks, sampling=FAST)
    assert both.shape == (2, 4, 32, 32, 32) and both.abs().max() <= 1
    assert torch.equal(model.sample(masks[0], sampling=FAST), both[:1]) and not torch.equal(both[0], both[1])
    assert not torch.equal(model.sample(masks[0], sampling=FAST, seed=1), both[:1])


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (np.zeros((32, 32, 31)), r"masks: the shape is \(32, 32, 31\), but the model needs \(32, 32, 32\)"),
        (np.zeros((32, 32)), r"masks: the shape is \(32, 32\)"),
        (np.full((32, 32, 32), 3), "masks: "),
        (np.full((32, 32, 32), np.nan), "masks: "),
    ],
)
def test_masks_that_the_model_cannot_use(run, masks, said):
    with pytest.raises(medaug.UserError, match=said) as caught:
        medaug.load(run).sample(masks, sampling=FAST)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_missing_checkpoints_and_invalid_options_are_refused(run, tmp_path):
    with pytest.raises(medaug.UserError, match="holds no checkpoint"):
        medaug.load(tmp_path)
    with pytest.raises(medaug.UserError, match="absent.ckpt: no such checkpoint"):
        medaug.SyntheticPairs(tmp_path / "absent.ckpt")
    with pytest.raises(medaug.UserError, match="num=0: must be at least 1"):
        medaug.SyntheticPairs(run, num=0)
    for options, said in (
        ({"masks": "nothing"}, "masks.source=nothing: not one of real, deformed"),
        ({"masks": {"elastic": -1.0}}, "masks.elastic=-1: must be at least 0"),
        ({"masks": {"rotate": 3.0}}, "masks: no key rotate; did you mean rotation"),
        ({"masks": {"source": "real", "rotation": 3.0}}, "has no effect without masks.source=deformed.*; leave it out"),
        ({"guidance": medaug.Guidance(1.0, negative=(1,))}, "with guidance_scale=1.0"),
        ({"guidance": medaug.Guidance(2.0, negative=(9,))}, "guidance: 9 is not the index of a foreground class"),
        ({"sampling": medaug.Sampling("heunn")}, "sampler.name=heunn: not one of .*did you mean heun"),
        ({"sampling": medaug.Sampling(parameters={"power": 2.0})}, "the sampler dpmpp_2m does not read it"),
    ):
        with pytest.raises(medaug.UserError, match=said):
            medaug.SyntheticPairs(run, **options)
    with pytest.raises(medaug.UserError, match="guidance_scale=-1: must be at least 0"):
        medaug.load(run).sample(np.zeros((32, 32, 32)), guidance=-1)
    with pytest.raises(medaug.UserError, match="attributes: the model has no attribute site"):
        medaug.load(run).sample(np.zeros((32, 32, 32)), attributes={"site": "A"})


@pytest.mark.slow
def test_pairs_are_those_that_generate_writes(run, tmp_path):
    pairs = medaug.SyntheticPairs(run, sampling=FAST, num=5, seed=3)
    job, recipes = pairs._load()
    generate_pairs(job.model, job.card, recipes, 5, job.generate.batch_size, tmp_path)
    made = by_index(pairs)
    assert sorted(made) == list(range(5))
    for index, pair in made.items():
        for m, volume in enumerate(pair["image"]):
            written = nib.load(tmp_path / f"imagesTr/demo_synthetic_{index:05d}_{m:04d}.nii.gz")
            assert np.array_equal(np.asarray(written.dataobj), volume.numpy())
            assert np.allclose(written.affine, pair["image"].affine)
        written = nib.load(tmp_path / f"labelsTr/demo_synthetic_{index:05d}.nii.gz")
        assert np.array_equal(np.asarray(written.dataobj), pair["label"][0].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_number_of_workers_changes_no_pair(run, workers):
    pairs = medaug.SyntheticPairs(run, sampling=FAST, num=9)
    assert_equal_pairs(by_index(pairs), by_index(DataLoader(pairs, batch_size=None, num_workers=workers)))


@pytest.mark.slow
def test_processes_share_the_pairs(run, monkeypatch):
    pairs = medaug.SyntheticPairs(run, sampling=FAST, num=9)
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        found.append([pair["index"] for pair in pairs])
    assert found == [[0, 1, 2, 3, 8], [4, 5, 6, 7]]


@pytest.mark.slow
def test_a_refused_pair_is_made_again_and_the_others_are_unchanged(run):
    plain = by_index(medaug.SyntheticPairs(run, sampling=FAST, num=4))
    refused = plain[1]["recipe"]
    screened = by_index(medaug.SyntheticPairs(run, screen=lambda pair: pair["recipe"] != refused, sampling=FAST, num=4))
    assert '"attempt": 0' in refused and '"attempt": 1' in screened[1]["recipe"]
    del plain[1], screened[1]
    assert_equal_pairs(plain, screened)


@pytest.mark.slow
def test_a_screen_that_refuses_everything_ends_with_a_message(run, monkeypatch):
    monkeypatch.setattr("medaug.api.MOST_ATTEMPTS", 3)
    seen = []
    pairs = medaug.SyntheticPairs(run, screen=lambda pair: bool(seen.append(pair)), sampling=FAST)
    with pytest.raises(medaug.UserError, match="pair 0: the screen refused 3 attempts"):
        next(iter(pairs))
    assert len(seen) == 3


def test_a_cohort_is_read_from_a_manifest_and_from_a_folder(home, run):
    manifest = medaug.read_cohort(run / "train" / "manifest.json")
    folder = medaug.read_cohort(home / "phantoms")
    assert {case.name for case in manifest.cases} == {case.name for case in folder.cases} and folder.phantom
