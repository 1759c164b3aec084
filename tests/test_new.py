"""Experiments of one's own, in a folder `conf` beside the runs."""

from __future__ import annotations

import re

import pytest

from medaug import config, new
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schema = LabelSchema(((0, "background"), (1, "core #1")))
    splits = ("train", "train", "test")
    cases = tuple(Case(f"c{i}", (f"{i}.nii.gz",), None, f"s{i}", split) for i, split in enumerate(splits))
    Manifest("mine", "", ("T1",), schema, cases, str(tmp_path)).save(tmp_path / "mine.json")
    return tmp_path


def write(*words: str) -> None:
    words = tuple(word if "=" in word else f"name={word}" for word in words)
    new.main(config.load_options("new", words))


def test_the_file_is_an_experiment_for_the_manifest_and_every_suggestion_in_it_is_valid(home):
    write("mri", "manifest=mine.json")
    path = home / "conf/experiment/mri.yaml"
    assert "T1; 3 scans of subjects 2 train, 0 val, 1 test; core #1" in path.read_text()
    assert "mri" in config.choices("experiment")
    options = config.load_options("train", ["experiment=mri"])
    plain = config.load_options("train", ["experiment=cohort", "data.manifest=mine.json"])
    assert (options.experiment, options.preset) == ("mri", "cpu")
    assert options.data == plain.data and options.network == plain.network

    text = re.sub(r"(?m)^(?:# (?=network|segmenter)|#   (?=[a-z_]+: )|  # (?=[a-z-]+))", indented, path.read_text())
    (home / "conf/experiment/all.yaml").write_text(text)
    options = config.load_options("train", ["experiment=all"])
    assert (options.codec.name, options.process.noise_schedule, options.network.spatial_dims) == ("kl", "edm", 2)
    assert (options.data.spacing, options.network.coordinates) == ([1.0, 1.0, 1.0], True)


def indented(found: re.Match[str]) -> str:
    return {"# ": "", "#   ": "  ", "  # ": "  "}[found[0]]


def test_names_that_cannot_be_are_refused_and_files_are_never_replaced(home):
    for words, said in (
        (("a/b", "manifest=mine.json"), "is not a name"),
        (("demo", "manifest=mine.json"), "medaug has an experiment of this name"),
        (("mri",), "manifest=FILE.json"),
        (("mri", "manifest=gone.json"), "gone.json"),
    ):
        with pytest.raises(UserError, match=said):
            write(*words)
    assert not (home / "conf").exists()
    write("mri", "manifest=mine.json")
    with pytest.raises(UserError, match="exists already"):
        write("mri", "manifest=mine.json")


def test_choices_of_ones_own_are_found_in_every_group_but_never_replace_medaugs(home):
    (home / "conf/preset").mkdir(parents=True)
    (home / "conf/preset/tiny.yaml").write_text("# @package _global_\ntrainer:\n  max_steps: 3\n")
    (home / "conf/sampler").mkdir()
    (home / "conf/sampler/heun.yaml").write_text("num_inference_steps: 2\n")
    assert config.load_options("train", ["experiment=demo", "preset=tiny"]).trainer.max_steps == 3
    with pytest.raises(UserError, match=r"conf/sampler/heun.yaml: medaug has this sampler as well; rename the file"):
        config.load_options("generate", ["experiment=demo", "sampler=heun"])
    assert config.load_options("generate", ["experiment=demo"]).sampler.name == "dpmpp_2m"
