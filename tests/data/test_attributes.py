"""Encoding attributes of scans as numbers: known values, unknown values, and refusals."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medaug.cohort.manifest import Case
from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder, check_attributes, fit_attributes
from medaug.errors import UserError


def scan(name, spacing=(1.0, 1.0, 1.0), **attributes):
    return Case(name, (f"{name}.nii",), None, name, "train", attributes), np.diag([*spacing, 1.0])


SCANS = [
    scan("a", (1, 1, 3.0000004), site="Zurich", grade=2.0),
    scan("b", (1, 1, 5), site="Aachen", grade=4.0),
    scan("c", (1, 1, 3), grade=4.0, contrast="yes"),
    scan("d", (1, 1, 5), site="Aachen"),
]
ENCODER = fit_attributes(["site", "spacing", "grade"], SCANS)
UNKNOWN = [0.0] * 3, [0.0] * 4, [0.0] * 2


def encoded(*scan):
    case, affine = scan
    return ENCODER.encode(ENCODER.of(case, affine)).tolist()


def test_texts_are_one_hot_numbers_are_standardised_and_flags_say_what_is_known():
    low, high = 2.0, 4.0
    mean = (low + high + high) / 3
    std = np.sqrt(((low - mean) ** 2 + 2 * (high - mean) ** 2) / 3)
    expected = {
        "a": [0, 1, 1, 0, 0, -1, 1, (low - mean) / std, 1],
        "b": [1, 0, 1, 0, 0, 1, 1, (high - mean) / std, 1],
        "c": [0, 0, 0, 0, 0, -1, 1, (high - mean) / std, 1],
        "d": [1, 0, 1, 0, 0, 1, 1, 0, 0],
    }
    for case, affine in SCANS:
        assert encoded(case, affine) == pytest.approx(expected[case.name], abs=1e-6)
    assert ENCODER.size == 9 and NO_ATTRIBUTES.size == 0
    assert NO_ATTRIBUTES.encode({"site": "A"}).shape == (0,)


def test_spacing_is_along_the_axes_of_the_model():
    """A sagittal scan is encoded like an axial scan with the same voxel size."""
    case, _ = scan("s")
    affine = np.array([[0.0, -2, 0, 5], [0, 0, 3, 6], [5, 0, 0, 7], [0, 0, 0, 1]])
    assert ENCODER.of(case, affine) == {"spacing": [2.0, 3.0, 5.0]}


def test_plain_values_make_the_same_encoder():
    assert AttributeEncoder.from_dict(json.loads(json.dumps(ENCODER.to_dict()))) == ENCODER


def test_a_value_that_training_never_saw_is_unknown_and_warned_about(caplog):
    site, spacing, grade = UNKNOWN
    new = scan("v", (1, 1, 4), site="Basel", grade=3.0)
    vector = encoded(*new)
    assert vector[:3] == site and vector[3:7] == [0, 0, 0, 1] and vector[8] == 1
    with caplog.at_level(logging.WARNING):
        ENCODER.warn_of_unknown([*SCANS, new, scan("w", site="Basel", grade=1.0)])
    assert caplog.messages == [
        "attribute site counts as unknown in case c: it has none",
        "attribute grade counts as unknown in case d: it has none",
        "attribute site counts as unknown in case v (and 1 more): Basel was never seen in training",
    ]


def test_a_text_where_training_had_numbers_is_unknown(caplog):
    new = scan("v", site="Zurich", grade="II")
    assert encoded(*new)[7:] == UNKNOWN[2]
    ENCODER.warn_of_unknown([new])
    assert caplog.messages == ["attribute grade counts as unknown in case v: II was never seen in training"]


@given(st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=5), st.randoms())
def test_hidden_attributes_equal_unknown_attributes(which, random):
    names = ["site", "spacing", "grade"]
    known = [ENCODER.of(*random.choice(SCANS)) for _ in which]
    vectors = torch.stack([ENCODER.encode(values) for values in known])
    before = vectors.clone()
    rest = [
        ENCODER.encode({name: v for name, v in values.items() if not hidden[names.index(name)]})
        for values, hidden in zip(known, which, strict=True)
    ]
    assert torch.equal(ENCODER.hide(vectors, torch.tensor(which)), torch.stack(rest))
    assert torch.equal(vectors, before)
    assert NO_ATTRIBUTES.hide(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)


def test_requested_attributes_are_parsed():
    assert ENCODER.requested(["site:Aachen", "grade:2.5"]) == {"site": "Aachen", "grade": 2.5}
    assert ENCODER.requested([]) == NO_ATTRIBUTES.requested([]) == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["site:Basel"], "site:Basel: training saw no such site; choose from Aachen, Zurich"),
        (["site:"], "training saw no such site"),
        (["site"], "site has no value; write site:VALUE"),
        (["grade:9"], "grade:9: training saw no such grade; choose from 2 to 4"),
        (["grade:nan"], "training saw no such grade"),
        (["grade:high"], "grade:high: training saw no such grade"),
        (["contrast:yes"], "the model has no attribute contrast; choose from site, grade"),
        (["spacing:1"], "spacing is fixed by the host's grid"),
        (["site:Aachen", "site:Zurich"], "site is given twice"),
    ],
)
def test_unusable_requests_are_refused(words, reason):
    with pytest.raises(UserError, match=reason) as error:
        ENCODER.requested(words)
    assert "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize(
    ("names", "scans", "reason"),
    [
        (["stie"], SCANS, "no training case has stie; there are contrast, grade, site, spacing"),
        (["site", "site"], SCANS, "site is given twice"),
        (["contrast"], SCANS, "contrast is yes in all training scans, so it has no effect; leave it out"),
        (["grade"], SCANS[1:], "grade is 4 in all training scans"),
        (["spacing"], SCANS[::2], "spacing is 1 x 1 x 3 in all training scans"),
    ],
)
def test_unusable_attributes_are_refused(names, scans, reason):
    with pytest.raises(UserError, match=reason) as error:
        fit_attributes(names, scans)
    assert "\n" not in str(error.value)


def test_spacing_need_not_be_in_the_manifest():
    check_attributes(["spacing"], [SCANS[0][0]])
    with pytest.raises(UserError, match="no training case has site; there are spacing"):
        check_attributes(["site"], [scan("x")[0]])
