"""Starting from an earlier checkpoint: matching weights are copied, the rest is reported, mismatches are refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits, model_options
from test_fit import BUDGET, CARD, contents, make_cases

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.config import load_options
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.networks.condition import Condition
from medaug.train import main
from medaug.training.checkpoint import Base, Card, read_checkpoint
from medaug.training.data import TrainingData
from medaug.training.fit import fit
from medaug.training.initial import initialise, read_base

THREE = LabelSchema(((0, "background"), (1, "core"), (2, "rim")))


DENOISE = {"mask": False, "degradation": "noise"}
GENERATOR = {"target": "label", "mask": False}


def card_of(schema=CARD.schema, process=None, codec="haar", modalities=("T1",), task=None, **network) -> Card:
    options = model_options(process, codec, **network) | {"task": task or {}}
    return replace(CARD, options=options, schema=schema, modalities=modalities)


def unconditional(card: Card) -> Card:
    return replace(card, options=card.options | {"task": {"mask": False}})


def randomised(card: Card):
    """A model with random weights and statistics."""
    torch.manual_seed(7)
    model = card.build()
    for tensor in (*model.parameters(), model.codec.mean):
        torch.nn.init.normal_(tensor, std=0.1)
    model.codec.std.uniform_(0.5, 2.0)
    return model.eval()


def save(path: Path, card: Card):
    model = randomised(card)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 3, "medaug": card.to_dict()}, path)
    return model


def cohort(test_subject: str) -> Manifest:
    case = Case("a_1", ("a.nii.gz",), None, test_subject, "test")
    return Manifest("toy", "", CARD.modalities, CARD.schema, (case,), ".")


def inputs(model, planes: int, num=2):
    x = torch.randn(num, model.codec.channels, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(0.2, 0.8, num), Condition(torch.ones(num, planes, 4, 4, 4), torch.zeros(num, 0))


def test_the_same_architecture_is_copied_with_the_codecs_statistics(tmp_path):
    former, model = save(tmp_path / "a.ckpt", CARD), CARD.build()
    report = initialise(model, tmp_path / "a.ckpt")
    assert all(torch.equal(value, former.state_dict()[name]) for name, value in model.state_dict().items())
    assert report.loaded == report.total == len(model.network.state_dict()) and report.new == ()
    assert str(report) == f"{report.total} of {report.total} tensors of the network are initialised from it"


@pytest.mark.parametrize("coordinates", [False, True])
@torch.no_grad()
def test_a_mask_added_to_an_unconditional_model_changes_nothing_at_first(tmp_path, coordinates):
    card = card_of(coordinates=coordinates)
    former = save(tmp_path / "a.ckpt", unconditional(card))
    model = card.build()
    report = initialise(model, tmp_path / "a.ckpt")
    assert report.loaded == report.total
    x, t, condition = inputs(model, 9)
    expected = former.network(x, t, inputs(model, 0)[2])
    assert expected.std() > 0
    torch.testing.assert_close(model.network(x, t, condition), expected, atol=1e-5, rtol=1e-5)
    # and it can learn: the mask's weights are zero, their gradients are not
    with torch.enable_grad():
        model.network(x, t, condition).square().mean().backward()
    assert (model.network.unet.conv_in.conv.weight.grad[:, 8:17].abs().amax((0, 2, 3, 4)) > 0).all()


@torch.no_grad()
def test_with_other_classes_training_starts_from_the_null_condition(tmp_path):
    """Two classes where there was one, and a stem where there was none: the masks are new, the rest is not."""
    former = save(tmp_path / "a.ckpt", CARD)
    expected = former.network(*inputs(former, 9)[:2], Condition(torch.zeros(2, 9, 4, 4, 4), torch.zeros(2, 0)))
    for network, new in (({}, ()), ({"stem": 9}, ("stem.0",))):
        model = card_of(THREE, **network).build()
        assert initialise(model, tmp_path / "a.ckpt").new == new
        torch.testing.assert_close(model.network(*inputs(model, 18)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["unet", "spade", "controlnet"])
@torch.no_grad()
def test_planes_of_another_meaning_are_not_copied(tmp_path, name):
    """One class, then one image: 9 planes each. The output for the null condition stays the same."""
    former = save(tmp_path / "a.ckpt", card_of(name=name))
    model = card_of(name=name, task=DENOISE).build()
    initialise(model, tmp_path / "a.ckpt")
    x, t, null = *inputs(model, 9)[:2], Condition(torch.zeros(2, 9, 4, 4, 4), torch.zeros(2, 0))
    own, theirs = model.network.state_dict(), former.network.state_dict()
    if name == "unet":
        torch.testing.assert_close(model.network(*inputs(model, 9)), former.network(x, t, null), atol=1e-5, rtol=1e-5)
    else:
        part = "mlp_shared" if name == "spade" else "cond_embedding"
        weights = [key for key in own if part in key and key.endswith("weight")]
        assert weights and not any(torch.equal(own[key], theirs[key]) for key in weights)


def test_a_wider_or_other_network_reports_its_new_parts(tmp_path):
    save(tmp_path / "a.ckpt", CARD)
    spade = card_of(name="spade").build()
    report = initialise(spade, tmp_path / "a.ckpt")
    assert report.new == ("unet.up_blocks",) and 0 < report.loaded < report.total
    assert f"{report.loaded} of {report.total} tensors" in str(report) and str(report).endswith("new: unet.up_blocks")
    deeper = card_of(channels=[8, 8, 16], attention=[False] * 3).build()
    report = initialise(deeper, tmp_path / "a.ckpt")
    assert "unet.down_blocks" in report.new and "unet.time_embed" not in report.new and report.loaded < report.total


def test_a_controlnet_starts_from_its_base(tmp_path):
    former = save(tmp_path / "a.ckpt", unconditional(CARD))
    model = card_of(name="controlnet").build()
    report = initialise(model, tmp_path / "a.ckpt")
    parts = ("cond_embedding", "down_blocks", "mid_block")
    assert report.new == tuple(f"control.controlnet_{part}" for part in parts)
    former.network.requires_grad_(False)  # for weights in training, torch uses other kernels, which round differently
    with torch.no_grad():
        assert torch.equal(model.network(*inputs(model, 9)), former.network(*inputs(model, 0)))


EDM = {"noise_schedule": "edm", "prediction_type": "edm"}


@pytest.mark.parametrize(
    ("former", "now", "complaint"),
    [
        (card_of(codec="identity"), CARD, r"another space \(codec.name=identity, 1 modalities\)"),
        (card_of(task=GENERATOR), CARD, "task.target=label, and its codec cannot encode images"),
        (card_of(modalities=("T1", "T2")), CARD, r"another space \(codec.name=haar, 2 modalities"),
        (CARD, card_of(coordinates=True), "network.coordinates=False, not True; set the same"),
        (CARD, card_of(name="controlnet", norm_num_groups=8), "network.norm_num_groups=4, not 8"),
        (card_of(num_head_channels=4), card_of(name="controlnet"), "network.num_head_channels=4, not 8"),
        (card_of(channels=[8, 16]), card_of(name="controlnet"), r"network.channels=.8, 16., not .8, 8."),
        (card_of(process=EDM), card_of(name="controlnet"), "another process .process.noise_schedule=edm"),
        (card_of(name="spade"), card_of(name="controlnet"), "has no base for this ControlNet"),
        (card_of(), card_of(channels=[16, 16]), "no weight of its network fits this one"),
    ],
)
def test_incompatible_checkpoint_is_refused_with_one_line(tmp_path, former, now, complaint):
    save(tmp_path / "a.ckpt", former)
    model = now.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=complaint) as caught:
        initialise(model, tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"init_from={tmp_path / 'a.ckpt'}: ")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Crash(Exception):
    """The machine went down."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_run_starts_from_averaged_weights_and_resuming_does_not_reload_them(tmp_path, name):
    save(tmp_path / "a.ckpt", unconditional(CARD))
    first = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    card = card_of(name=name)

    def train(folder, picture=None):
        folder.mkdir(exist_ok=True)
        budget = replace(BUDGET, max_steps=4, checkpoint_every=1, validate_every=2)
        start = {"picture": picture, "init_from": tmp_path / "a.ckpt"}
        fit(TrainingData(card, make_cases(4, 0), make_cases(2, 1)), folder, budget, "csv", **start)
        return contents(folder)

    whole = train(tmp_path / "whole")
    for statistic in ("model.codec.mean", "model.codec.std"):
        assert torch.equal(whole["state_dict"][statistic], first[statistic])
    current = whole["current_model_state"]
    if name == "controlnet":  # the base stays what it was, in the raw weights and in their average
        assert all(torch.equal(whole["state_dict"][key], first[key]) for key in first)
        assert all(torch.equal(current[key], first[key]) for key in first)
        control = card.build().network.control
        assert len(whole["optimizer_states"][0]["state"]) == len(list(control.parameters()))
    else:
        shift = [(current[key] - first[key]).abs().max() for key in first if current[key].shape == first[key].shape]
        assert 0 < max(shift) < 0.01, "four small steps from where it began"

    def crash(step, *_):
        raise Crash

    with pytest.raises(Crash):
        train(tmp_path / "parts", crash)
    assert contents(tmp_path / "parts")["global_step"] == 2
    (tmp_path / "a.ckpt").unlink()  # what goes on needs it no more
    assert_same_bits(whole, train(tmp_path / "parts"))


def test_the_card_names_the_base_and_counts_its_subjects_as_seen(tmp_path, caplog):
    grandparent = Base("first", "0" * 64, {"train": ["g"], "val": ["h"]})
    path = tmp_path / "a.ckpt"
    save(path, replace(CARD, experiment="second", base=grandparent, subjects={"train": ["a"], "val": ["b"]}))
    with caplog.at_level(logging.WARNING):
        base = read_base(path, cohort("nobody"))
    assert not caplog.records
    assert base == Base("second", file_sha256(path), {"train": ["a", "g"], "val": ["b", "h"]})
    card = replace(CARD, base=base, subjects={"train": ["c", "a"], "val": ["d"]})
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert card.seen.subjects == {"train": ["a", "c", "g"], "val": ["b", "d", "h"]}
    assert CARD.seen == Seen(CARD.subjects)
    without = CARD.to_dict()
    del without["base"]
    assert Card.from_dict(without) == CARD, "a card from before there were bases"
    read_base(path, cohort("g"))
    assert "saw 1 subject(s) of the test split (g first)" in caplog.text


def test_other_modality_or_class_names_are_logged(tmp_path, caplog):
    path = tmp_path / "a.ckpt"
    save(path, CARD)
    read_base(path, replace(cohort("nobody"), modalities=("FLAIR",)))
    assert "its modalities are T1; their weights initialise FLAIR, matched by order" in caplog.text
    caplog.clear()
    read_base(path, replace(cohort("nobody"), schema=LabelSchema(((0, "background"), (5, "cyst")))))
    assert "its classes are background, lesion; their weights initialise background, cyst" in caplog.text
    caplog.clear()
    read_base(path, replace(cohort("nobody"), schema=THREE))  # other planes, which begin at zero
    assert not caplog.records


def run_train(runs: Path, *words: str) -> Path:
    small = ("data.phantom_subjects=5", "data.max_side=16", "data.val_fraction=0.2", "data.test_fraction=0.2")
    budget = ("trainer.max_steps=2", "trainer.precision=fp32", "logger=csv")
    main(load_options("train", ["experiment=demo", "preset=smoke", f"runs={runs}", *small, *budget, *words]))
    return runs / "demo" / "train"


@pytest.mark.slow
def test_the_stage_trains_a_control_on_a_base_and_remembers_which(tmp_path):
    base = run_train(tmp_path / "base") / "last.ckpt"
    words = ("network=controlnet", f"init_from={base}")
    folder = run_train(tmp_path / "control", *words)
    card, _ = read_checkpoint(folder / "last.ckpt")
    former, _ = read_checkpoint(base)
    digests = sorted({digest for files in former.contents.values() for digest in files})
    assert digests and card.base == Base("demo", file_sha256(base), former.subjects, digests)
    before = (folder / "last.ckpt").read_bytes()
    run_train(tmp_path / "control", *words)  # finished: left alone
    assert (folder / "last.ckpt").read_bytes() == before
    moved = base.rename(tmp_path / "moved.ckpt")
    run_train(tmp_path / "control", "network=controlnet", f"init_from={moved}")  # the same file elsewhere
    other = run_train(tmp_path / "other", "trainer.seed=1") / "last.ckpt"
    with pytest.raises(UserError, match="another configuration .init_from: "):
        run_train(tmp_path / "control", "network=controlnet", f"init_from={other}")


@pytest.mark.slow
def test_invalid_init_from_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="network=controlnet: needs a base; train one with task=unconditional"):
        run_train(tmp_path, "network=controlnet")
    with pytest.raises(UserError, match="init_from=.*/none.ckpt: no such file"):
        run_train(tmp_path, f"init_from={tmp_path / 'none.ckpt'}")
    own = tmp_path / "demo" / "train" / "last.ckpt"
    assert not own.parent.exists()
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(UserError, match="lies in the folder of this run"):
        run_train(tmp_path, f"init_from={own}")


def test_a_model_that_gains_a_field_of_view_starts_as_under_the_null_condition(tmp_path):
    former = save(tmp_path / "a.ckpt", card_of(codec="identity"))
    model = card_of(codec="identity", field_of_view=True).build()
    report = initialise(model, tmp_path / "a.ckpt")
    x = model.network.parts[0]
    weight = model.network.state_dict()["unet.conv_in.conv.weight"]
    assert torch.equal(weight[:, :x], former.network.state_dict()["unet.conv_in.conv.weight"][:, :x])
    assert not weight[:, x:].any() and report.loaded == report.total
