"""What each arm trains on, and which arms may be asked for."""

from __future__ import annotations

import pytest

from medaug.comparison.arms import ARMS, check_arms, diet, pairs_to_compare
from medaug.errors import UserError
from medaug.options import ArmsOptions

REAL, SYNTHETIC = ["r"], ["s"]


def test_each_arm_adds_one_ingredient():
    plain, classical, synthetic = (diet(arm, REAL, SYNTHETIC, 0.25) for arm in ARMS)  # type: ignore[arg-type]
    assert (plain.real, list(plain.synthetic), plain.augment) == (REAL, [], False)
    assert (classical.real, list(classical.synthetic), classical.augment) == (REAL, [], True)
    assert (synthetic.real, synthetic.synthetic, synthetic.augment) == (REAL, SYNTHETIC, True)
    assert synthetic.synthetic_share == 0.25


def test_each_arm_is_held_against_the_one_before():
    assert pairs_to_compare(ARMS) == [(ARMS[1], ARMS[0]), (ARMS[2], ARMS[1])]
    assert pairs_to_compare(ARMS[::2]) == [(ARMS[2], ARMS[0])]


@pytest.mark.parametrize(
    ("options", "batch_size", "said"),
    [
        (ArmsOptions(names=["real", "real+gan"]), 4, "arms.names: real\\+gan is not one of real, real\\+classical"),
        (ArmsOptions(names=["real"]), 4, "at least two different arms"),
        (ArmsOptions(names=[]), 4, "at least two different arms"),
        (ArmsOptions(names=["real", "real"]), 4, "at least two different arms"),
        (ArmsOptions(synthetic_share=0.0), 4, "synthetic_share=0: a number between 0 and 1"),
        (ArmsOptions(synthetic_share=1.0), 4, "synthetic_share=1: a number between 0 and 1"),
        (ArmsOptions(synthetic_share=0.2), 2, "synthetic_share=0.2 of segmenter.batch_size=2 leaves no room"),
        (ArmsOptions(synthetic_share=0.9), 4, "synthetic_share=0.9 of segmenter.batch_size=4 leaves no room"),
        (ArmsOptions(), 1, "segmenter.batch_size=1 leaves no room"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, batch_size, said):
    with pytest.raises(UserError, match=said):
        check_arms(options, batch_size)


def test_sound_arms_pass():
    check_arms(ArmsOptions(), 2)
    check_arms(ArmsOptions(synthetic_share=0.25), 4)
    check_arms(ArmsOptions(names=["real", "real+classical"]), 1)  # nothing synthetic, nothing to share
