"""A run with scoring that is killed and started again selects the same checkpoint."""

from __future__ import annotations

import pytest
from helpers import assert_same_bits
from test_resume import contents, start, train

from medaug.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

SCORED = (
    "data.phantom_subjects=7",
    "trainer.score_every=3",
    "trainer.score_num=2",
    "trainer.score_inference_steps=2",
    "trainer.selector_steps=4",
)


def best(runs):
    return read_checkpoint(runs / "demo" / "train" / "best.ckpt")


def table(runs):
    return runs / "demo" / "train" / "scores.csv"


def test_a_killed_run_selects_the_same_checkpoint(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, *SCORED)
    process = start(killed, *SCORED)
    while not table(killed).exists():
        assert process.poll() is None, "ended before its first scoring"
    process.kill()
    process.communicate()
    selector = killed / "demo" / "train" / "selector.pt"
    trained_at = selector.stat().st_mtime_ns
    train(killed, *SCORED)
    assert selector.stat().st_mtime_ns == trained_at
    assert table(whole).read_text() == table(killed).read_text()
    assert [line.split(",")[0] for line in table(whole).read_text().splitlines()] == ["step", "3", "6", "9", "12"]
    assert_same_bits(contents(whole), contents(killed))
    card, one = best(whole)
    assert_same_bits(one, best(killed)[1])
    assert len(card.subjects["val"]) > 0, "who helped to choose it is on its card, for the leak guard"
