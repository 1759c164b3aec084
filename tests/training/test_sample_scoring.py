"""Scoring selects the best checkpoint and warns, each step is scored once, and the training keeps its bits."""

from __future__ import annotations

import csv
import logging
from dataclasses import replace

import pytest
import torch
from helpers import assert_same_bits, samples
from test_fit import BUDGET, CARD, make_cases

from medaug.errors import UserError
from medaug.training import scoring
from medaug.training.checkpoint import load_model, read_checkpoint
from medaug.training.data import TrainingData
from medaug.training.fit import fit

SCORED = replace(BUDGET, score_every=2, score_num=16)
WORTH = {2: 0.5, 4: 0.8, 6: 0.8, 7: 0.3}


class Crash(Exception):
    """The machine went down."""


class Judge:
    """A score with given values, which also records the samples of the model."""

    def __init__(self, worth=WORTH, chance=None):
        self.worth = worth
        self.chance = chance or {}
        self.steps: list[int] = []
        self.seen: dict[int, torch.Tensor] = {}

    def __call__(self, model, step):
        assert not model.training
        self.steps.append(step)
        label = torch.zeros(1, *CARD.preprocessing.shape, dtype=torch.long)
        image = samples(model, label, [3], guidance_scale=1.0, sampler="dpmpp_2m", num_inference_steps=2)
        self.seen[step] = image
        return {
            "score": self.worth[step],
            "near_copies": 0.25,
            "near_copies_p": self.chance.get(step, 1.0),
            "brightness": float(image.mean()),
        }


def train(folder, judge, budget=SCORED):
    return fit(TrainingData(CARD, make_cases(5, 0), make_cases(3, 1)), folder, budget, "csv", score=judge)


def contents(folder, name="last.ckpt"):
    return torch.load(folder / name, weights_only=True)


def rows(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, judge = tmp_path_factory.mktemp("scored"), Judge()
    return folder, judge, train(folder, judge)


@pytest.mark.slow
def test_scoring_does_not_change_the_training(whole, tmp_path):
    fit(TrainingData(CARD, make_cases(5, 0), make_cases(3, 1)), tmp_path, BUDGET, "csv")
    assert not (tmp_path / "best.ckpt").exists() and not (tmp_path / "scores.csv").exists()
    assert_same_bits(contents(tmp_path), contents(whole[0]))


@pytest.mark.slow
def test_scoring_at_the_interval_and_the_last_step_keeps_the_earliest_best(whole):
    folder, judge, summary = whole
    assert judge.steps == [2, 4, 6, 7]
    assert [(int(row["step"]), float(row["score"])) for row in rows(folder)] == list(WORTH.items())
    assert contents(folder, "best.ckpt")["global_step"] == 4
    assert (summary.best["step"], summary.best["score"]) == (4, 0.8)
    again = Judge()
    assert train(folder, again) == summary and not again.steps, "stopped after its last step, before it was finished"


@pytest.mark.slow
def test_best_checkpoint_has_the_format_of_last_and_the_scored_weights(whole):
    folder, judge, _ = whole
    best, last = contents(folder, "best.ckpt"), contents(folder)
    assert best.keys() == last.keys()
    card, model = load_model(folder / "best.ckpt", torch.device("cpu"))
    assert card.subjects == CARD.subjects
    label = torch.zeros(1, *CARD.preprocessing.shape, dtype=torch.long)
    image = samples(model, label, [3], guidance_scale=1.0, sampler="dpmpp_2m", num_inference_steps=2)
    assert torch.equal(image, judge.seen[4]), "the averaged weights of that step"
    assert not torch.equal(image, judge.seen[2])


def test_the_logger_gets_what_the_table_gets(whole):
    folder = whole[0]
    (metrics,) = folder.rglob("metrics.csv")
    with metrics.open(newline="") as file:
        logged = {int(row["step"]): row for row in csv.DictReader(file) if row["sample/score"]}
    assert len(rows(folder)) > 1
    for row in rows(folder):
        for name in ("score", "near_copies", "brightness"):
            assert float(logged[int(row["step"])][f"sample/{name}"]) == pytest.approx(float(row[name]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("while sampling", 4),
        ("before the best is in place", 4),
        ("before the row is", 4),
        ("after both", 4),
        ("before the row is", 7),
    ],
)
def test_a_crash_anywhere_leads_to_the_same_files(whole, tmp_path, monkeypatch, where, step):
    class Dying(Judge):
        def __call__(self, model, at):
            if at == step and where == "while sampling":
                raise Crash
            return super().__call__(model, at)

    worth = WORTH if step == 4 else WORTH | {7: 0.9}
    real_save, real_write = scoring.save_whole, scoring._write

    def save(trainer, path):
        if trainer.global_step == step and where == "before the best is in place":
            raise Crash
        real_save(trainer, path)

    def write(path, table):
        if table[-1]["step"] == step and where == "before the row is":
            raise Crash
        real_write(path, table)
        if table[-1]["step"] == step and where == "after both":
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "save_whole", save)
        patch.setattr(scoring, "_write", write)
        with pytest.raises(Crash):
            train(tmp_path, Dying(worth))
    again = Judge(worth)
    summary = train(tmp_path, again)
    assert [int(row["step"]) for row in rows(tmp_path)] == [2, 4, 6, 7]
    assert (step in again.steps) == (where != "after both")
    assert again.steps == sorted(set(again.steps))
    assert_same_bits(contents(whole[0]), contents(tmp_path))
    assert (summary.best["step"], summary.best["score"]) == (step, worth[step])
    assert isinstance(summary.best["step"], int), "as in the summary of a run that was not killed"
    if step == 4:
        assert_same_bits(contents(whole[0], "best.ckpt"), contents(tmp_path, "best.ckpt"))
        assert rows(whole[0]) == rows(tmp_path)
    else:
        assert_same_bits(contents(tmp_path), contents(tmp_path, "best.ckpt"))


@pytest.mark.slow
def test_a_resumed_run_knows_its_best_score(tmp_path):
    train(tmp_path, Judge(), replace(SCORED, max_steps=4))
    best = (tmp_path / "best.ckpt").read_bytes()
    judge = Judge()
    train(tmp_path, judge)
    assert judge.steps == [6, 7]
    assert (tmp_path / "best.ckpt").read_bytes() == best
    assert read_checkpoint(tmp_path / "best.ckpt")[1]["callbacks"]["SampleScoring"] == {"step": 4, "score": 0.8}


@pytest.mark.slow
def test_without_the_best_file_the_next_scoring_is_the_best(tmp_path):
    train(tmp_path, Judge(), replace(SCORED, max_steps=4))
    (tmp_path / "best.ckpt").unlink()
    train(tmp_path, Judge())
    assert contents(tmp_path, "best.ckpt")["global_step"] == 6


@pytest.mark.slow
def test_a_damaged_best_file_ends_the_run_in_one_line_and_leftovers_are_removed(tmp_path):
    train(tmp_path, Judge(), replace(SCORED, max_steps=4))
    whole, leftover = (tmp_path / "best.ckpt").read_bytes(), tmp_path / ".tmp-123-best.ckpt"
    leftover.write_bytes(whole[:100])
    (tmp_path / "best.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"best\.ckpt: not a whole checkpoint"):
        train(tmp_path, Judge())
    (tmp_path / "best.ckpt").write_bytes(whole)
    train(tmp_path, Judge())
    assert not leftover.exists()


@pytest.mark.slow
def test_memorisation_is_warned_about_once(tmp_path, caplog):
    chance = {2: 0.02, 4: 0.004, 6: 1e-9, 7: 1e-9}
    with caplog.at_level(logging.WARNING, "medaug.training.scoring"):
        train(tmp_path, Judge(chance=chance), replace(SCORED, max_steps=4))
        train(tmp_path, Judge(chance=chance))
    (said,) = [record.getMessage() for record in caplog.records if record.name == scoring.__name__]
    assert said.startswith("step 4: 25% of the samples are near copies of training scans")
    assert "(p = 0.004)" in said and "best.ckpt" in said and "\n" not in said


@pytest.mark.slow
def test_a_few_near_copies_give_no_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "medaug.training.scoring"):
        train(tmp_path, Judge(chance=dict.fromkeys(WORTH, 0.01)))
    assert not [record for record in caplog.records if record.name == scoring.__name__]
