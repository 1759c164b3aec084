"""What each arm trains on, and which arms can be compared."""

from __future__ import annotations

import pytest

from medaug.cohort.schema import LabelSchema
from medaug.comparison.arms import ARMS, Arm, check_arms, pairs_to_compare
from medaug.comparison.material import Material
from medaug.config import load_options
from medaug.data.transforms import classical
from medaug.errors import UserError
from medaug.options import ArmsOptions

REAL, SYNTHETIC = ["r"], ["s"]
SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))
MATERIAL = Material(REAL, SYNTHETIC, 0.25, SCHEMA)  # type: ignore[arg-type]
NAMES = ["real", "real+classical", "real+classical+synthetic"]


def test_each_arm_adds_one_ingredient():
    plain, classic, synthetic = (ARMS[arm].training_set(MATERIAL) for arm in NAMES)
    assert (plain.real, list(plain.synthetic), plain.augment) == (REAL, [], None)
    assert (classic.real, list(classic.synthetic), classic.augment) == (REAL, [], classical)
    assert (synthetic.real, synthetic.synthetic, synthetic.augment) == (REAL, SYNTHETIC, classical)
    assert synthetic.synthetic_share == 0.25


def test_a_ratio_is_the_number_of_synthetic_volumes_per_real_one():
    for ratio in (0.25, 0.5, 1, 2, 4):
        training_set = ARMS[f"real+classical+synthetic_x{ratio}"].training_set(MATERIAL)
        synthetic = training_set.num_synthetic(4)
        assert synthetic / (4 - synthetic) == pytest.approx(ratio)
    alone = ARMS["synthetic_only"].training_set(MATERIAL)
    assert list(alone.real) == [] and alone.num_synthetic(4) == 4


def test_every_arm_leads_to_an_arm_without_a_baseline():
    for name in ARMS:
        baseline = name
        for _ in ARMS:
            if ARMS[baseline].baseline is None:
                break
            baseline = ARMS[baseline].baseline
        assert baseline == "real"


def test_an_arm_without_its_baseline_is_compared_with_the_next_one():
    assert pairs_to_compare(NAMES) == [(NAMES[1], NAMES[0]), (NAMES[2], NAMES[1])]
    assert pairs_to_compare(NAMES[::2]) == [(NAMES[2], NAMES[0])]


def test_an_added_arm_names_its_own_baseline(monkeypatch):
    """Arms need not form a chain: two arms with the same baseline, in any order, one of them without real scans."""
    monkeypatch.setitem(ARMS.own, "synthetic", lambda: Arm(baseline="real", real=False, synthetic=True))
    assert pairs_to_compare(["synthetic", "real+classical", "real"]) == [
        ("synthetic", "real"),
        ("real+classical", "real"),
    ]
    training_set = ARMS["synthetic"].training_set(MATERIAL)
    assert list(training_set.real) == [] and training_set.num_synthetic(4) == 4
    check_arms(ArmsOptions(names=["real", "synthetic"]), 1)
    monkeypatch.setitem(ARMS.own, "apart", lambda: Arm(baseline=None))
    with pytest.raises(UserError, match="no arm among these is the baseline of another"):
        check_arms(ArmsOptions(names=["real", "apart"]), 4)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("arms.names=[real,real+gan]", "real\\+gan is not one of real, real\\+classical"),
        ("arms.names=[real]", "at least 2 values, each given once"),
        ("arms.names=[]", "at least 2 values, each given once"),
        ("arms.names=[real,real]", "at least 2 values, each given once"),
        ("arms.synthetic_share=0", "must be above 0 and below 1"),
        ("arms.synthetic_share=1", "must be above 0 and below 1"),
        ("benchmark.seeds=[1,1]", "each given once"),
        ("benchmark.backend=gan", "not one of unet"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(word, said):
    with pytest.raises(UserError, match=said):
        load_options("benchmark", ["experiment=demo", word])


@pytest.mark.parametrize(
    ("options", "batch_size", "said"),
    [
        (ArmsOptions(synthetic_share=0.2), 2, "synthetic_share=0.2 of segmenter.batch_size=2 leaves no room"),
        (ArmsOptions(synthetic_share=0.9), 4, "synthetic_share=0.9 of segmenter.batch_size=4 leaves no room"),
        (ArmsOptions(), 1, "segmenter.batch_size=1 leaves no room"),
        (
            ArmsOptions(names=["self_training", "self_training+synthetic"]),
            2,
            "what pseudo.share=0.5 leaves of segmenter",
        ),
    ],
)
def test_a_share_that_leaves_no_room_for_both_is_refused(options, batch_size, said):
    with pytest.raises(UserError, match=said):
        check_arms(options, batch_size)


def test_valid_arms_pass():
    check_arms(ArmsOptions(), 2)
    check_arms(ArmsOptions(synthetic_share=0.25), 4)
    check_arms(ArmsOptions(names=["self_training", "self_training+synthetic"]), 4)
    check_arms(ArmsOptions(names=["real", "real+classical"]), 1)  # no synthetic volumes, so the share does not matter
