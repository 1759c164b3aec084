"""The training loop in one process: wherever it is stopped, the resumed run ends with the same bits."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_same_bits, model_options

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.training.checkpoint import Card, load_model
from medaug.training.data import TrainingData
from medaug.training.fit import fit
from medaug.training.module import DiffusionModule
from medaug.training.plan import make_plan

SHAPE = (8, 8, 8)
BUDGET = TrainerOptions(
    max_steps=7,
    batch_size=2,
    warmup_steps=2,
    ema_sigma_rel=0.2,
    checkpoint_every=2,
    validate_every=3,
    accelerator="cpu",
    precision="fp32",
    num_workers=0,
)
CARD = Card(
    experiment="toy",
    options=model_options(),
    preprocessing=Preprocessing(SHAPE, None, (0.0, 100.0)),
    schema=LabelSchema(((0, "background"), (1, "lesion"))),
    modalities=("T1",),
    subjects={"train": ["0"], "val": ["1"]},
    phantom=True,
)


def make_cases(num, seed):
    rng = np.random.default_rng(seed)
    placement = Placement(SHAPE, ((0, 1), (1, 1), (2, 1)), SHAPE, (0.0,), (1.0,))
    return [
        ModelCase(
            case=Case(str(i), ("x.nii.gz",), None, str(i), "train"),
            image=rng.uniform(-1, 1, (1, *SHAPE)).astype(np.float32),
            label=rng.integers(0, 2, SHAPE).astype(np.uint8),
            affine=np.eye(4),
            dtype=np.dtype(np.int16),
            placement=placement,
        )
        for i in range(num)
    ]


def train(folder, picture=None, budget=BUDGET, card=CARD):
    return fit(TrainingData(card, make_cases(5, 0), make_cases(3, 1)), folder, budget, "csv", picture=picture)


def contents(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    summary = train(folder)
    assert summary.step == BUDGET.max_steps
    assert summary.validation_loss > 0
    return contents(folder)


class Crash(Exception):
    """The machine went down."""


@pytest.mark.slow
def test_weights_and_their_average_both_change(whole):
    current, average = whole["current_model_state"], whole["state_dict"]
    moved = [key for key in current if not torch.equal(current[key], average[key])]
    assert len(moved) > 10
    assert not any("codec" in key for key in moved), "measured statistics are not averaged"


@pytest.mark.slow
@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_crash_loses_only_the_steps_since_the_checkpoint(whole, tmp_path, at):
    """A crash in the validation of step 3 goes on from step 2; one at step 6 from step 6."""

    def crash(step, *_):
        if step == at:
            raise Crash

    with pytest.raises(Crash):
        train(tmp_path, crash)
    assert contents(tmp_path)["global_step"] == at // 2 * 2
    assert train(tmp_path).step == BUDGET.max_steps
    assert_same_bits(whole, contents(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops_and_the_run_can_resume(whole, tmp_path, number):
    pictured = []

    def interrupt(step, *_):
        pictured.append(step)
        os.kill(os.getpid(), number)
        return _empty_picture(tmp_path)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, interrupt)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert contents(tmp_path)["global_step"] == 4, "the step in hand"
    assert pictured == [3], "no validation on the way out"
    train(tmp_path)
    assert_same_bits(whole, contents(tmp_path))


def _empty_picture(folder):
    from matplotlib.image import imsave

    path = folder / "picture.png"
    imsave(path, np.zeros((2, 2)))
    return path


@pytest.mark.slow
def test_a_crash_while_saving_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    train(tmp_path, budget=replace(BUDGET, max_steps=2))
    former = (tmp_path / "last.ckpt").read_bytes()

    def half(contents, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise Crash

    from lightning.pytorch.strategies import Strategy

    monkeypatch.setattr(
        Strategy, "save_checkpoint", lambda self, contents, path, storage_options=None: half(contents, path)
    )
    with pytest.raises(Crash):
        train(tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == former
    assert [path.name for path in tmp_path.glob(".tmp-*")] == []


@pytest.mark.slow
def test_extended_run_with_constant_rate_equals_a_longer_run(tmp_path):
    budget = replace(BUDGET, schedule="constant", max_steps=4)
    train(tmp_path / "long", budget=budget)
    train(tmp_path / "grown", budget=replace(budget, max_steps=2))
    train(tmp_path / "grown", budget=budget)
    assert_same_bits(contents(tmp_path / "long"), contents(tmp_path / "grown"))


def test_more_steps_continue_from_the_end(tmp_path):
    train(tmp_path, budget=replace(BUDGET, max_steps=3))
    pictured = []

    def picture(step, *_):
        pictured.append(step)
        return _empty_picture(tmp_path)

    assert train(tmp_path, picture).step == 7
    grown = contents(tmp_path)
    assert grown["optimizer_states"][0]["state"][0]["step"] == 7
    assert grown["averaging_state"]["n_averaged"] == 7
    assert pictured == [6]


def curve(folder):
    with (folder / "validation.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_validation_is_recorded_once_wherever_the_run_was_killed(tmp_path):
    """Killed in the validation of step 3 (before which step 2 was saved), of 6 (just saved), and of the last step."""
    budget = replace(BUDGET, max_steps=9, checkpoint_every=2)
    train(tmp_path / "whole", budget=budget)
    to_come = [3, 6, 9]

    def crash(step, *_):
        if step == to_come[0]:
            raise Crash
        return _empty_picture(tmp_path)

    while to_come:
        with pytest.raises(Crash):
            train(tmp_path / "killed", crash, budget=budget)
        to_come.pop(0)
    train(tmp_path / "killed", budget=budget)
    whole = curve(tmp_path / "whole")
    assert [row["step"] for row in whole] == ["3", "6", "9"]
    assert list(whole[0]) == ["step", "loss", *(f"loss_t{t}" for t in ("0.1", "0.3", "0.5", "0.7", "0.9"))]
    assert curve(tmp_path / "killed") == whole
    assert_same_bits(contents(tmp_path / "whole"), contents(tmp_path / "killed"))


@pytest.mark.slow
def test_loss_by_noise_level_is_computed_with_the_averaged_model(whole, tmp_path):
    train(tmp_path, budget=replace(BUDGET, max_steps=3))
    _, model = load_model(tmp_path / "last.ckpt", torch.device("cpu"))
    losses = []
    for i, case in enumerate(make_cases(3, 1)):
        x0 = model.codec.encode(torch.from_numpy(case.image)[None])
        draw = torch.Generator().manual_seed(named_seed(named_seed(0, "validation", i), "diffusion"))
        torch.rand((), generator=draw)
        model.process.schedule.training_times(1, draw)
        noise = torch.randn(x0.shape[1:], generator=draw)
        t = torch.tensor([0.7])
        condition = model.condition(torch.from_numpy(case.label).long()[None], torch.ones(1, 1))
        with torch.no_grad():
            output = model.predict(0.3 * x0 + 0.7 * noise, t, condition)
        losses.append((output - (noise - x0)).square().mean().item())
    assert float(curve(tmp_path)[0]["loss_t0.7"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_accumulation_equals_a_larger_batch(tmp_path):
    budget = replace(BUDGET, max_steps=4)
    pairs = {"one": budget, "two": replace(budget, batch_size=1, accumulate=2)}
    for name, budget in pairs.items():
        train(tmp_path / name, budget=budget)
    one, two = (contents(tmp_path / name) for name in pairs)
    assert one["global_step"] == two["global_step"] == two["averaging_state"]["n_averaged"] == 4
    assert one["lr_schedulers"] == two["lr_schedulers"]
    for part in ("state_dict", "current_model_state"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_accumulation_resumes_exactly(tmp_path):
    budget = replace(BUDGET, accumulate=2, max_steps=4)
    train(tmp_path / "whole", budget=budget)

    def crash(step, *_):
        if step == 3:
            raise Crash
        return _empty_picture(tmp_path)

    with pytest.raises(Crash):
        train(tmp_path / "killed", crash, budget=budget)
    assert contents(tmp_path / "killed")["global_step"] == 2
    train(tmp_path / "killed", budget=budget)
    assert_same_bits(contents(tmp_path / "whole"), contents(tmp_path / "killed"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_follows_its_schedule(tmp_path, schedule):
    budget = replace(BUDGET, schedule=schedule)
    module = DiffusionModule(CARD, budget)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(BUDGET.max_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"] / budget.learning_rate)
        optimizer.step()
        scheduler.step()
    last = 0.1 if schedule == "cosine" else 1.0
    decay = [last + (1 - last) * (1 + np.cos(np.pi * k / BUDGET.max_steps)) / 2 for k in range(BUDGET.max_steps + 1)]
    np.testing.assert_allclose(rates, np.minimum([0.5, *[1.0] * BUDGET.max_steps], 1) * decay, rtol=1e-6)


@pytest.mark.slow
def test_measuring_a_plan_does_not_change_the_training(whole, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_plan(TrainingData(CARD, make_cases(5, 0), make_cases(3, 1)), BUDGET)
    assert torch.equal(torch.rand(3), expected)
    train(tmp_path)
    assert_same_bits(whole, contents(tmp_path))


@pytest.mark.slow
def test_compiling_changes_neither_keys_nor_result(tmp_path, monkeypatch):
    budget = replace(BUDGET, max_steps=1)
    train(tmp_path / "plain", budget=budget)
    whole = contents(tmp_path / "plain")
    compiled = []

    def eager(module):
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    train(tmp_path, budget=replace(budget, compile="true"))
    assert len(compiled) == 1
    found = contents(tmp_path)
    for part in ("state_dict", "current_model_state"):
        assert found[part].keys() == whole[part].keys()
        for key, value in whole[part].items():
            torch.testing.assert_close(found[part][key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_finished_run_returns_the_same_json_summary(tmp_path):
    first = train(tmp_path, budget=replace(BUDGET, max_steps=2))
    before = (tmp_path / "last.ckpt").read_bytes()
    summary = train(tmp_path, budget=replace(BUDGET, max_steps=2))
    assert summary == first and summary.step == 2 and summary.validation_loss > 0
    json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_another_experiments_checkpoint_is_refused(tmp_path):
    train(tmp_path, budget=replace(BUDGET, max_steps=2))
    with pytest.raises(UserError, match="belongs to experiment toy, not other"):
        train(tmp_path, card=replace(CARD, experiment="other"))


def test_unknown_logger_is_refused(tmp_path):
    with pytest.raises(UserError, match="logger.name=paper"):
        fit(TrainingData(CARD, make_cases(2, 0), make_cases(1, 1)), tmp_path, BUDGET, "paper")


@pytest.mark.parametrize(
    ("card", "budget", "complaint"),
    [
        (replace(CARD, subjects={"train": ["0", "new"], "val": ["1"]}), BUDGET, "the cohort changed .*subjects"),
        (replace(CARD, preprocessing=Preprocessing(SHAPE, None, (1.0, 99.0))), BUDGET, "preprocessing"),
        (CARD, replace(BUDGET, max_steps=5), "7 steps already, more than trainer.max_steps=5"),
    ],
)
def test_a_run_cannot_resume_with_another_cohort(whole, tmp_path, card, budget, complaint):
    torch.save(whole, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=complaint):
        train(tmp_path, budget=budget, card=card)
    assert_same_bits(whole, contents(tmp_path))


@pytest.mark.slow
def test_a_run_cannot_resume_if_a_scan_was_replaced(tmp_path):
    """A run from before contents were recorded may resume, too."""
    known = replace(CARD, contents={"a": ["1", "2"], "b": ["3"]})
    train(tmp_path, budget=replace(BUDGET, max_steps=2), card=known)
    train(tmp_path, budget=replace(BUDGET, max_steps=2), card=known)
    with pytest.raises(UserError, match=r"files of b \(1 cases in all\) changed since this run began"):
        train(tmp_path, budget=replace(BUDGET, max_steps=2), card=replace(CARD, contents={"a": ["1", "2"], "b": ["4"]}))
    old = tmp_path / "old"
    train(old, budget=replace(BUDGET, max_steps=2), card=CARD)
    train(old, budget=replace(BUDGET, max_steps=2), card=known)
