"""The declarations of the options: limits of every number, choices against tables, and the generated pages."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from medaug import config
from medaug.entries import OWN
from medaug.errors import UserError
from medaug.keys import Key, check_stored, condition_text, fits, keys, names, problem, value_of, values_text
from medaug.options import Options
from medaug.options.declaration import Items, Range, not_with, only_with
from medaug.paths import stage_folder
from medaug.reference import reference
from medaug.runs import claim, command, finish
from medaug.stages import STAGES

KEYS = keys()
NUMERIC = [path for path, key in KEYS.items() if "integer" in str(values_text(key)) or "number" in values_text(key)]
# Seeds go through a hash, which takes any integer; the others are any number by their meaning.
UNLIMITED = {"data.split_seed", "data.labelled_seed", "ingest.split_seed", "trainer.seed", "generate.seed"}
UNLIMITED |= {"benchmark.seeds", "data.window", "process.log_sigma_mean"}


def listed(key: Key, number: float) -> object:
    """The number as a value of the key: alone, or in a list of as many values as the key wants."""
    if not fits([1], key.hint) and not fits([1.0], key.hint):
        return number
    return [number, *(number + 1 + i for i in range(max(key.items.fewest, key.items.count or 0) - 1))]


def test_every_number_has_limits_or_is_known_to_need_none():
    limited = {path for path in NUMERIC if str(KEYS[path].limits)}
    assert set(NUMERIC) - limited == UNLIMITED and not limited & UNLIMITED


@pytest.mark.parametrize("path", NUMERIC)
def test_every_number_is_refused_beyond_its_limits_and_accepted_at_them(path):
    key, limits = KEYS[path], KEYS[path].limits
    whole = fits(1, key.hint) and not fits(1.5, key.hint) or fits([1], key.hint) and not fits([1.5], key.hint)
    step = 1 if whole else 1e-9
    least = limits.least if limits.least is not None else limits.above
    most = limits.most if limits.most is not None else limits.below
    outside = [end for end in (limits.above, limits.below) if end is not None]
    outside += [least - step] if least is not None else []
    outside += [most + step] if most is not None else []
    for number in outside:
        value = listed(key, int(number) if whole else float(number))
        assert problem(key, value) == f"must be {limits}", number
    for number in (limits.least, limits.most):
        if number is not None and not (key.items.count and number == limits.most):
            assert problem(key, listed(key, int(number) if whole else float(number))) is None, number
    assert problem(key, key.default) is None
    if not whole:
        for number in (math.nan, math.inf, -math.inf):
            assert "NaN or infinity" in str(problem(key, listed(key, number)))


@pytest.mark.parametrize("path", sorted(set(NUMERIC) - UNLIMITED))
def test_errors_name_key_and_range_before_anything_is_composed(path, monkeypatch):
    monkeypatch.setattr(config, "compose", lambda *_, **__: pytest.fail("composed"))
    key = KEYS[path]
    stage = next(stage for stage in STAGES.values() if stage.accepts(path))
    limits = key.limits
    low = limits.least if limits.least is not None else limits.above
    text = str(listed(key, int(low) - 1)).replace(" ", "")
    with pytest.raises(UserError) as refused:
        config.load_options(stage.name, ["experiment=demo", f"{path}={text}"])
    assert str(refused.value) == f"{path}={text}: must be {limits}"


def test_ranges_in_words_and_which_numbers_they_contain():
    for limits, words, inside, outside in (
        (Range(least=1), "at least 1", (1, 2), (0, -1)),
        (Range(above=0), "above 0", (0.1,), (0, -1)),
        (Range(above=0, below=1), "above 0 and below 1", (0.5,), (0, 1)),
        (Range(least=0, below=1), "at least 0 and below 1", (0, 0.9), (-0.1, 1)),
        (Range(least=0, most=1), "between 0 and 1", (0, 1), (-0.1, 1.1)),
        (Range(), "", (-1e9, 1e9), ()),
    ):
        assert str(limits) == words
        assert all(number in limits for number in inside) and not any(number in limits for number in outside)
        assert math.nan not in limits or not words


def test_lists_in_words_and_what_fits():
    for items, words, right, wrong in (
        (Items(fewest=1), "at least 1 value", [[3], [3, 3]], [[]]),
        (Items(count=3), "3 values", [[1, 1, 1]], [[1, 2], [1, 2, 3, 4]]),
        (Items(count=2, ascending=True), "2 ascending values", [[1, 2]], [[2, 1], [1, 1], [1]]),
        (Items(fewest=2, distinct=True), "at least 2 values, each given once", [[1, 2]], [[1], [1, 1]]),
        (Items(distinct=True), "no value twice", [[], ["a", "b"]], [["a", "a"]]),
    ):
        assert str(items) == words
        assert all(items.problem(values) is None for values in right)
        assert all(items.problem(values) == f"must have {words}" for values in wrong)


def test_conditions_hold_and_are_put_into_words():
    assert only_with("a").holds(3) and not only_with("a").holds(None) and not only_with("a").holds([])
    assert only_with("a").holds(0.5) and not only_with("a").holds(0) and not only_with("a").holds(False)
    assert not not_with("a").holds("x") and not_with("a").holds(None)
    assert only_with("a", "x", "y").holds("y") and not only_with("a", "x").holds("y")
    assert condition_text(KEYS["codec.max_steps"], "train") == (
        "only with codec=kl, not with init_from, not with codec.checkpoint"
    )
    assert condition_text(KEYS["trainer.max_steps"]) == ""


def test_conditions_name_existing_keys():
    for key in KEYS.values():
        for when in key.applies_when:
            assert when.key in KEYS, (key.path, when.key)
            for value in when.values:
                assert problem(KEYS[when.key], value) is None, (key.path, value)
    assert [when.key for when in KEYS["ingest.val_fraction"].applies_when] == ["ingest.splits"]
    assert KEYS["data.val_fraction"].applies_when == ()


@pytest.mark.parametrize(
    ("stage", "words", "said"),
    [
        ("train", ["codec=identity", "codec.levels=2"], "codec.levels=2: has no effect without codec=haar"),
        ("train", ["codec=kl", "codec.levels=2"], "codec.levels=2: has no effect without codec=haar"),
        (
            "train",
            ["codec=kl", "codec.checkpoint=x", "codec.kl_weight=1"],
            "codec.kl_weight=1: has no effect with codec.",
        ),
        ("train", ["task=denoise", "task.factor=3"], "task.factor=3: has no effect without task.degradation=low_"),
        ("train", ["task=super_resolution", "task.noise_std=0.5"], "has no effect without task.degradation=noise"),
        ("train", ["codec.latent_channels=8"], "codec.latent_channels=8: has no effect without codec=kl"),
        (
            "train",
            ["process=ddpm", "process.time_shift=3"],
            "has no effect without process.noise_schedule=rectified_flow",
        ),
        ("train", ["trainer.class_dropout=0.2", "task=unconditional"], "has no effect without task.mask; give both"),
        ("train", ["trainer.score_num=8", "trainer.score_every=0"], "has no effect without trainer.score_every"),
        ("train", ["data.window=[0,1]"], "has no effect without data.intensity=window"),
        ("train", ["data.fold=2"], "data.fold=2: has no effect without data.folds"),
        ("train", ["data.subject_consecutive=2"], "has no effect without data.subject_pattern"),
        ("ingest", ["subject_consecutive=2"], "subject_consecutive=2: has no effect without subject_pattern"),
        ("generate", ["guidance_scale=1", "negative_classes=[oedema]"], "has no effect with guidance_scale=1.0; leave"),
        ("generate", ["guidance_scale=1", "guidance_interval=[0.1,0.5]"], "has no effect with guidance_scale=1.0"),
        ("generate", ["masks=real", "masks.rotation=3"], "has no effect without masks.source=deformed"),
        ("generate", ["masks=real", "masks.checkpoint=x"], "masks.checkpoint=x: has no effect without masks.source"),
        ("generate", ["sampler.eta=0.5"], "sampler.eta=0.5: has no effect without sampler=ddim"),
        ("predict", ["remove=true"], "remove=true: has no effect without inpaint; give both or neither"),
        ("predict", ["split=val", "manifest=other.json"], "has no effect with manifest; leave one of them out"),
    ],
)
def test_keys_without_effect_are_refused_on_a_command_line(stage, words, said):
    with pytest.raises(UserError) as refused:
        config.load_options(stage, ["experiment=demo", *words])
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("stage", "word", "said"),
    [
        ("train", "trainer.precision=fp8", "not one of auto, bf16, fp16, fp32; did you mean"),
        ("train", "trainer.strategy=deepspeed", "not one of auto, ddp, fsdp"),
        ("train", "trainer.schedule=linear", "not one of cosine, constant"),
        ("train", "trainer.compile=yes", "not one of auto, true, false"),
        ("train", "trainer.accelerator=tpu", "not one of auto, cpu, gpu"),
        ("train", "network.spatial_dims=4", "not one of 2, 3"),
        ("train", "network.channels=[]", "must have at least 1 value"),
        ("train", "codec.channels=[8]", "must have at least 2 values"),
        ("train", "task.target=mask", "not one of image, label"),
        ("train", "task.degradation=blur", "not one of none, noise, low_resolution"),
        ("train", "task.modalities=[t1,t1]", "must have no value twice"),
        ("train", "task.given=[t1,t1]", "must have no value twice"),
        ("train", "data.percentiles=[99,1]", "must have 2 ascending values"),
        ("train", "data.percentiles=[1]", "must have 2 ascending values"),
        ("train", "data.intensity=minmax", "not one of percentile, window, zscore"),
        ("train", "data.window=[100,-100]", "must have 2 ascending values"),
        ("train", "data.spacing=[1,1]", "must have 3 values"),
        ("train", "data.shape=[8,8]", "must have 3 values"),
        ("train", "data.resample=always", "not one of auto, never"),
        ("train", "data.crop=head", "not one of none, body"),
        ("train", "data.cache=tape", "not one of disk, ram"),
        ("train", "process.noise_schedule=sigmoid", "not one of linear, cosine, rectified_flow, edm"),
        ("benchmark", "arms.names=[real,real+gan]", "real+gan is not one of real, real+classical"),
        ("benchmark", "arms.names=[real]", "must have at least 2 values, each given once"),
        ("generate", "guidance_interval=[0.8,0.2]", "must have 2 ascending values"),
        ("generate", "guidance_interval=[0.5]", "must have 2 ascending values"),
        ("generate", "checkpoint=newest", "not one of auto, best, last"),
        ("predict", "split=all", "not one of train, val, test"),
        ("ingest", "on_gap=fill", "not one of refuse, resample"),
        ("ingest", "on_grid=fill", "not one of refuse, resample"),
    ],
)
def test_choices_and_lists_are_checked(stage, word, said):
    with pytest.raises(UserError) as refused:
        config.load_options(stage, ["experiment=demo", word])
    assert str(refused.value).startswith(f"{word}: {said}")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("codec.levels", 4, "must be between 1 and 3"),
        ("codec.channels", (8,), "must have at least 2 values"),
        ("network.num_res_blocks", 0, "must be at least 1"),
        ("network.stem", -1, "must be at least 0"),
        ("process.noise_schedule", "sigmoid", "not one of linear, cosine"),
        ("task.target", "mask", "not one of image, label"),
        ("trainer.precision", "fp7", "not one of auto, bf16"),
        ("trainer.region_weight", 0.0, "must be above 0"),
    ],
)
def test_stored_options_are_checked_like_those_of_a_command_line(path, value, said):
    group, name = path.split(".")
    with pytest.raises(UserError, match=f"^{path}=.*: {said}"):
        check_stored({group: {name: value}}, group)
    check_stored({group: {name: value, "removed": 1}}, f"{group}.removed")
    check_stored({group: {name: KEYS[path].default}}, group)


def test_an_installed_package_adds_a_choice(install):
    with pytest.raises(UserError, match="not one of dpmpp_2m"):
        config.load_options("generate", ["experiment=demo", "sampler.name=leap"])
    install("leaps", "LEAP = 1", samplers={"leap": "LEAP"})
    assert config.load_options("generate", ["experiment=demo", "sampler.name=leap"]).sampler.name == "leap"
    assert "|leap" in values_text(KEYS["sampler.name"])


def test_choices_are_what_the_code_knows():
    from medaug.cohort.manifest import SPLITS

    known = {
        "predict.split": SPLITS,
        "data.layout": ["auto", *(name for name in OWN["layouts"] if name != "pairs"), "phantom"],
        "ingest.layout": ["auto", *OWN["layouts"], "dicom"],
    }
    for path, expected in known.items():
        assert set(names(KEYS[path].choices)) == set(expected), path


def test_the_configuration_reference_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), "run `make docs`"
    assert all(f"| `{path}` |" in reference() for path in KEYS)


FORMER = yaml.safe_load((Path(__file__).parent / "former_identities.yaml").read_text())
NODES = {
    "train": ("data", "task", "codec", "network", "process", "trainer", "segmenter", "masks"),
    "generate": ("generate", "masks", "sampler"),
    "predict": ("predict", "sampler"),
    "audit": ("audit", "segmenter"),
    "benchmark": ("benchmark", "arms", "segmenter"),
}
WORDS = {"train": ["data.labelled=4", "trainer.score_every=4"], "generate": ["num=3"]}


@pytest.mark.parametrize("stage", FORMER)
def test_a_run_of_an_earlier_version_is_recognised(tmp_path, stage):
    words = ["experiment=demo", "preset=smoke", f"runs={tmp_path}", *WORDS.get(stage, [])]
    options = config.load_options(stage, words)
    folder = stage_folder(options, stage)
    claim(folder, FORMER[stage], overwrite=False)
    finish(folder, {})
    identity = config.part(options, *NODES[stage])
    assert not claim(folder, identity | {"preset": "smoke"}, overwrite=False), "finished already"
    assert json.loads((folder / "finished.json").read_text()) == {}


def test_a_key_that_earlier_runs_lack_belongs_to_the_identity_once_it_is_set():
    load = config.load_options
    assert "backend" not in config.part(load("benchmark", ["experiment=demo"]), "benchmark")["benchmark"]
    options = load("benchmark", ["experiment=demo"])
    options.benchmark.backend = "another"
    assert config.part(options, "benchmark")["benchmark"]["backend"] == "another"


@pytest.fixture
def trained(tmp_path):
    """A function that claims the folder of a training with a preset, as the stage does."""

    def start(preset: str) -> str:
        options = config.load_options("train", ["experiment=demo", f"preset={preset}", f"runs={tmp_path}"])
        claim(stage_folder(options, "train"), config.part(options, "data") | {"preset": preset}, overwrite=True)
        return f"runs={tmp_path}"

    return start


def test_later_stages_use_the_preset_of_the_training(trained, tmp_path):
    load = config.load_options
    assert load("generate", ["experiment=demo", f"runs={tmp_path}"]).preset == "demo"
    runs = trained("smoke")
    generate = load("generate", ["experiment=demo", runs])
    assert (generate.preset, generate.generate.num) == ("smoke", 4)
    assert load("benchmark", ["experiment=demo", runs]).benchmark.steps == 6
    assert load("generate", ["experiment=demo", runs, "preset=cpu"]).preset == "cpu", "the command line wins"
    assert load("train", ["experiment=demo", runs]).preset == "demo", "a training does not continue itself"
    assert load("generate", ["experiment=hippocampus", runs]).preset == "cpu"
    (tmp_path / "demo/train/config.yaml").write_text("preset: huge\n")
    with pytest.raises(UserError, match="preset=huge: no such preset"):
        load("generate", ["experiment=demo", runs])


def test_the_recorded_preset_is_not_part_of_the_identity(trained, tmp_path):
    trained("smoke")
    folder = tmp_path / "demo/train"
    identity = yaml.safe_load((folder / "config.yaml").read_text())
    assert identity.pop("preset") == "smoke"
    assert claim(folder, identity, overwrite=False) and claim(folder, identity | {"preset": "cpu"}, overwrite=False)


def test_hints_leave_out_a_preset_that_the_training_has_recorded(trained, tmp_path):
    options = config.load_options("audit", ["experiment=demo", "preset=smoke", f"runs={tmp_path}"])
    assert "preset=smoke" in command("generate", options)
    trained("smoke")
    assert "preset=" not in command("generate", options) and "preset=smoke" in command("train", options)
    assert "preset=cpu" in command("generate", replace(options, preset="cpu"))


def test_a_value_at_a_path():
    assert value_of(Options(), "data.phantom_side") == 64 and value_of(Options(), "preset") == "cpu"
