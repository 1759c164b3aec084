"""Command lines: how they become options, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shutil

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug import config
from medaug.errors import UserError
from medaug.keys import check_values, type_name
from medaug.options import Options
from medaug.stages import STAGES


def refused(stage: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load_options(stage, words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment, preset", itertools.product(config.choices("experiment"), config.choices("preset"))
)
def test_every_experiment_composes_with_every_preset(experiment, preset):
    options = config.load_options("train", [f"experiment={experiment}", f"preset={preset}"])
    assert isinstance(options, Options)
    assert (options.experiment, options.preset) == (experiment, preset)
    assert len(options.network.channels) == len(options.network.attention)
    for channels, attention in zip(options.network.channels, options.network.attention, strict=True):
        assert channels % options.network.norm_num_groups == 0
        assert not attention or channels % options.network.num_head_channels == 0


@pytest.mark.slow
def test_every_choice_of_every_group_is_what_its_file_says():
    """Composed together: the first choices of all groups that a stage reads, then the second ones, and so on."""
    names = {field.name for field in dataclasses.fields(Options)}
    assert {path.name for path in config.conf_dir().iterdir() if path.is_dir()} <= names
    groups = {group for group in names - {"experiment", "preset"} if config.choices(group)}
    preset = yaml.safe_load((config.conf_dir() / "preset" / "cpu.yaml").read_text())
    unseen = set(groups)
    for stage in STAGES.values():
        mine = sorted(unseen & set(stage.reads))
        unseen -= set(mine)
        for row in itertools.zip_longest(*map(config.choices, mine)):
            chosen = {group: name for group, name in zip(mine, row, strict=True) if name is not None}
            words = [f"{group}={name}" for group, name in chosen.items()]
            options = config.load_options(stage.name, ["experiment=demo", "preset=cpu", *words])
            for group, name in chosen.items():
                path, key = config.conf_dir() / group / f"{name}.yaml", config._entry_key(group)
                said = (
                    yaml.safe_load(path.read_text()) if path.exists() else {key.path.partition(".")[2]: name}
                )  # an entry's name
                composed = dataclasses.asdict(getattr(options, group))
                resolved = {key: value for key, value in said.items() if "${" not in str(value)}
                expected = resolved | preset.get(group, {})
                assert expected == {key: composed[key] for key in expected}, f"{group}={name}"
    assert not unseen


@pytest.mark.slow
def test_command_line_overrides_preset_and_preset_overrides_experiment():
    load = config.load_options
    assert load("train", ["experiment=demo"]).preset == "demo"
    assert load("train", ["experiment=hippocampus"]).preset == "cpu"
    assert load("train", ["experiment=demo", "preset=smoke"]).trainer.max_steps == 8
    assert load("train", ["trainer.max_steps=3", "preset=smoke", "experiment=demo"]).trainer.max_steps == 3
    assert load("train", ["experiment=brats", "data=phantom"]).data.layout == "phantom"
    multi, single = (load("train", ["experiment=brats", f"preset={p}"]) for p in ("multi_gpu", "gpu"))
    assert (multi.trainer.strategy, multi.trainer.devices) == ("ddp", -1)
    assert dataclasses.replace(multi.trainer, strategy="auto", devices=1) == single.trainer


@pytest.mark.slow
def test_a_stages_own_keys_need_no_prefix():
    generate = config.load_options("generate", ["experiment=demo", "num=5", "seed=7", "generate.batch_size=3"])
    assert (generate.generate.num, generate.generate.seed, generate.generate.batch_size) == (5, 7, 3)
    assert generate.trainer.seed == Options().trainer.seed
    ingest = config.load_options("ingest", ["root=/scans", "val_fraction=0"])
    assert (ingest.ingest.root, ingest.ingest.val_fraction) == ("/scans", 0.0)
    assert type(ingest.ingest.val_fraction) is float


def test_no_own_key_hides_a_shared_one():
    shared = {field.name for field in dataclasses.fields(Options)}
    for stage in STAGES.values():
        assert not shared & set(stage.own)
        assert set(stage.reads) <= shared | config.keys().keys()


@pytest.mark.parametrize(
    "text, value",
    [
        ("2024", "2024"),
        ("1e3", "1e3"),
        ("'x y.json'", "x y.json"),
        ("/scans (new)/a=b", "/scans (new)/a=b"),
        ("a,b", "a,b"),
        ("[x]", "[x]"),
        (r"^(\d+)_\w{2}$", r"^(\d+)_\w{2}$"),
        ("null", None),
        ("true", "true"),
        ("", ""),
    ],
)
def test_text_is_kept_as_typed(text, value):
    assert config.load_options("ingest", [f"name={text}"]).ingest.name == value


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("[10,11]", ["10", "11"]),
        ("[010, 1e3,true,null,1.50]", ["010", "1e3", "true", "null", "1.50"]),
        ("[Läsion,病変, two words]", ["Läsion", "病変", "two words"]),
        ("['a,b',\"c\"]", ["a,b", "c"]),
        ("[case_1,case-2]", ["case_1", "case-2"]),
        ("[]", []),
    ],
)
def test_lists_of_text_are_kept_as_typed(typed, values):
    assert config.load_options("ingest", [f"exclude={typed}"]).ingest.exclude == values
    assert config.load_options("ingest", [f"classes={typed}"]).ingest.classes == values


@pytest.mark.parametrize("typed", ["[a,(b]", "[a,,b]", "a,b", "[[a],b]"])
def test_lists_of_text_that_need_quotation_marks(typed):
    with pytest.raises(UserError, match=r"^exclude=.*: expected list of text"):
        config.load_options("ingest", [f"exclude={typed}"])


@pytest.mark.slow
@settings(max_examples=25)
@given(value=st.integers(-(10**9), 10**9), values=st.lists(st.integers(1, 999), min_size=1, max_size=4))
def test_numbers_and_lists_arrive_as_written(value, values):
    typed = f"network.channels=[{','.join(map(str, values))}]"
    options = config.load_options("train", ["experiment=demo", f"trainer.seed={value}", typed])
    assert options.trainer.seed == value
    assert options.network.channels == values


@pytest.mark.parametrize(
    "stage, words, parts",
    [
        ("generate", ["trainer.max_steps=9"], ["`train`", "not by `generate`", "checkpoint"]),
        ("generate", ["data=phantom"], ["`train`", "not by `generate`"]),
        ("train", ["num=9"], ["num is read by `generate` and `gallery`, not by `train`"]),
        ("train", ["trainer.max_step=9"], ["trainer.max_steps", "--help"]),
        ("train", ["max_steps=9"], ["did you mean codec.max_steps or trainer.max_steps"]),
        ("generate", ["nun=9"], ["did you mean num"]),
        ("train", ["hydra.run.dir=x"], ["hydra.run.dir"]),
        ("train", ["data@x=phantom"], ["data@x"]),
        ("generate", ["sampler=ddpn"], ["did you mean ddpm", "ddim, ddpm, dpmpp_2m"]),
        ("generate", ["sampler={name: x}"], ["no such sampler"]),
        ("audit", ["segmenter=x"], ["segmenter.key=value"]),
        ("train", ["preset=gpuu"], ["no such preset", "gpu", "smoke"]),
        ("generate", ["num=abc"], ["num=abc", "integer"]),
        ("generate", ["num=1.5"], ["num=1.5", "integer"]),
        ("generate", ["num=null"], ["num=null", "integer"]),
        ("generate", ["num=true"], ["num=true", "integer"]),
        ("generate", ["num=1,2"], ["integer"]),
        ("generate", ["num=range(3)"], ["integer"]),
        ("generate", ["guidance_scale=strong"], ["number"]),
        ("generate", ["overwrite=3"], ["true or false"]),
        ("train", ["network.channels=[a,b]"], ["list of integer"]),
        ("train", ["network.channels=8"], ["list of integer"]),
        ("train", ["network.channels=[[8]]"], ["list of integer"]),
        ("train", ["network.channels=(("], ["list of integer"]),
        ("generate", ["num"], ["num: expected key=value"]),
        ("generate", ["=3"], ["expected key=value"]),
        ("generate", ["+num=3"], ["num=value"]),
        ("generate", ["~num=3"], ["num=value"]),
        ("train", ["runs=${oc.env:MEDAUG_NO_SUCH_VARIABLE}"], ["MEDAUG_NO_SUCH_VARIABLE"]),
    ],
)
def test_mistakes_are_refused_in_one_line_that_names_them(stage, words, parts):
    message = refused(stage, "experiment=demo", *words)
    for text in parts:
        assert text in message


FLOATS = [path for path, key in config.keys().items() if "number" in type_name(key.hint)]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("path", FLOATS)
def test_no_number_may_be_nan_or_infinite(path, text):
    known = config.keys()
    stage = next(stage for stage in STAGES.values() if path.split(".")[0] in (*stage.reads, stage.name))
    typed = f"[1.0,{text}]" if "list" in type_name(known[path].hint) else text
    with pytest.raises(UserError, match=re.escape(f"{path}={typed}: expected a finite number")):
        config.parse_arguments(stage, ["experiment=demo", f"{path}={typed}"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_a_configuration_file_sets_is_checked_too(value):
    options = Options()
    options.trainer.weight_decay = value
    with pytest.raises(UserError, match=f"^trainer.weight_decay={value}: expected a finite number"):
        check_values(options, "train")
    check_values(Options(), "train")


@pytest.mark.parametrize(
    "stage, word, said",
    [
        ("train", "trainer.weight_decay=-0.1", "must be at least 0"),
        ("train", "trainer.region_weight=0", "must be above 0"),
        ("train", "trainer.labelled_share=1.5", "must be above 0 and at most 1"),
        ("train", "segmenter.channels=[]", "must have at least 1 value"),
        ("train", "segmenter.channels=[8,0]", "must be at least 1"),
        ("generate", "masks.elastic=-1", "must be at least 0"),
        ("audit", "judge_steps=0", "must be at least 1"),
        ("benchmark", "seeds=[]", "must have at least 1 value, each given once"),
        ("benchmark", "bootstrap_seed=-1", "must be at least 0"),
        ("train", "data.labelled_seed=1", "has no effect without data.labelled; give both or neither"),
        ("ingest", "splits_fold=1", "has no effect without splits; give both or neither"),
        ("ingest", "to=scans", "has no effect without download; give both or neither"),
    ],
)
def test_a_value_beyond_its_keys_limits_or_without_effect_is_refused(stage, word, said):
    assert refused(stage, "experiment=demo", word) == f"{word}: {said}"


def test_fractions_have_no_effect_if_a_file_defines_the_splits():
    words = ("splits=splits_final.json", "splits_fold=1")
    assert config.load_options("ingest", words).ingest.splits_fold == 1
    assert refused("ingest", *words, "val_fraction=0.2") == (
        "val_fraction=0.2: has no effect with splits; leave one of them out"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.seed=1", "trainer.seed=2"),
        ("trainer.seed=1", "trainer.seed=1"),
        ("data=phantom", "data=brats"),
        ("experiment=brats",),
    ],
)
def test_a_key_given_twice_is_refused(words):
    both = ("experiment=demo", *words)
    assert refused("train", *both) == (
        f"{both[-1]}: this key is given twice, first as {both[-2]}; leave one of them out"
    )


def test_a_key_given_with_and_without_its_stage_is_given_twice():
    assert "num=4" in refused("generate", "experiment=demo", "num=4", "generate.num=8")


def test_an_experiment_is_needed_and_must_exist():
    names = ", ".join(config.choices("experiment"))
    assert names in refused("train")
    assert names in refused("train", "experiment=null")
    message = refused("train", "experiment=hipocampus")
    assert "did you mean hippocampus" in message and names in message
    assert config.load_options("ingest", []).experiment == config.load_options("export", []).experiment == ""
    assert config.load_options("ingest", ["experiment=hippocampus", "data.labelled=8"]).data.labelled == 8
    assert "data.shape" in refused("ingest", "data.shape=[8,8,8]")


def test_data_folders_follow_the_environment(monkeypatch):
    monkeypatch.setenv("MEDAUG_DATA", "/scans")
    assert config.load_options("train", ["experiment=hippocampus"]).data.roots == ["/scans/Task04_Hippocampus"]
    monkeypatch.delenv("MEDAUG_DATA")
    assert config.load_options("train", ["experiment=hippocampus"]).data.roots == ["data/Task04_Hippocampus"]


def test_the_identity_of_a_run_leaves_out_what_changes_no_result():
    a = config.load_options("train", ["experiment=demo"])
    b = config.load_options("train", ["experiment=demo", "trainer.num_workers=7", "data.roots=[/elsewhere]"])
    c = config.load_options("train", ["experiment=demo", "trainer.seed=7"])
    identity = config.part(a, "experiment", "data", "trainer.seed")
    assert identity == config.part(b, "experiment", "data", "trainer.seed")
    assert identity != config.part(c, "experiment", "data", "trainer.seed")
    assert identity["trainer"] == {"seed": 0} and identity["experiment"] == "demo"
    assert identity["data"]["layout"] == "phantom" and "roots" not in identity["data"]
    assert "num_workers" in dataclasses.asdict(a.trainer) and "num_workers" not in config.part(a, "trainer")["trainer"]
    identity["data"]["percentiles"].append(0.0)
    assert a.data.percentiles == Options().data.percentiles


@pytest.mark.slow
def test_a_broken_configuration_file_is_named(tmp_path, monkeypatch):
    shutil.copytree(config.conf_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "preset" / "smoke.yaml").write_text("# @package _global_\ntrainer:\n  max_stepz: 3\n")
    monkeypatch.setattr(config, "conf_dir", lambda: tmp_path / "conf")
    assert "max_stepz" in refused("train", "experiment=demo", "preset=smoke")


@pytest.mark.parametrize("stage", ["generate", "predict", "audit", "benchmark"])
def test_every_stage_that_takes_a_checkpoint_lets_it_be_chosen(stage):
    assert config.load_options(stage, ["experiment=demo", "checkpoint=last"]).checkpoint == "last"
