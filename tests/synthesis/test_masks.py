"""Deformed masks against scipy, and the reasons for rejecting one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medaug.cohort.schema import IGNORE
from medaug.errors import UserError
from medaug.keys import check_values
from medaug.options import MasksOptions, Options
from medaug.synthesis.deformed import deform, rejection
from medaug.synthesis.sources import load_masks

STILL = MasksOptions(rotation=0.0, scaling=0.0, translation=0.0, elastic=0.0)


def nested(shape=(20, 22, 18)) -> np.ndarray:
    """A ball of class 3 in a ball of class 1, off centre, with a gap in the values."""
    x, y, z = np.indices(shape)
    distance = np.sqrt((x - 9) ** 2 + (y - 11) ** 2 + (z - 8) ** 2)
    return np.select([distance < 3, distance < 6], [3, 1], 0).astype(np.uint8)


def test_a_deformed_mask_is_a_function_of_its_seed():
    label, options = nested(), MasksOptions()
    before = label.copy()
    one, again, other = (load_masks(options).make(label, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and (one != label).any()
    np.testing.assert_array_equal(label, before)


def test_the_real_source_gives_the_mask_itself_and_a_copy_of_it():
    label = nested()
    mask = load_masks(MasksOptions(source="real")).make(label, 5)
    np.testing.assert_array_equal(mask, label)
    assert not np.shares_memory(mask, label)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**62))
def test_no_value_appears_and_the_classes_stay_nested(seed):
    label = nested()
    mask = deform(label, MasksOptions(), seed)
    assert mask.dtype == np.uint8 and mask.shape == label.shape
    assert set(np.unique(mask)) <= set(np.unique(label))
    if rejection(mask, label) is None:
        # A smooth displacement tears nothing: one piece, with its core inside.
        assert ndimage.label(mask > 0)[1] == 1
        core = mask == 3
        assert not (ndimage.binary_dilation(core) & (mask == 0)).any()
        for value in (1, 3):
            assert 0.5 <= (mask == value).sum() / (label == value).sum() <= 2


@settings(max_examples=25)
@given(seed=st.integers(0, 2**62))
def test_without_strength_nothing_moves_not_even_at_the_border(seed):
    label = np.random.default_rng(seed).integers(0, 3, (7, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(deform(label, STILL, seed), label)


@pytest.mark.parametrize("seed", range(4))
def test_a_pure_translation_is_scipys_shift(seed):
    label = nested()
    options = dataclasses.replace(STILL, translation=2.0)
    rng = np.random.default_rng(seed)
    rng.normal(0, 1, 6)  # angles and scales are drawn first
    shift = rng.normal(0, 2.0, 3)
    shares = [
        ndimage.shift((label == v).astype(np.float32), -shift, order=1, mode="grid-constant", cval=v == 0)
        for v in (0, 1, 3)
    ]
    np.testing.assert_array_equal(deform(label, options, seed), np.array([0, 1, 3])[np.argmax(shares, axis=0)])


@pytest.mark.parametrize("seed", range(3))
def test_a_pure_scaling_changes_the_volume_by_its_determinant(seed):
    x, y, z = np.indices((36, 36, 36))
    label = ((x - 19.3) ** 2 + (y - 16.8) ** 2 + (z - 18.4) ** 2 < 10**2).astype(np.uint8)
    rng = np.random.default_rng(seed)
    rng.normal(0, 1, 3)  # angles are drawn first
    scales = np.exp(rng.normal(0, 0.1, 3))
    mask = deform(label, dataclasses.replace(STILL, scaling=0.1), seed)
    assert mask.sum() / label.sum() == pytest.approx(1 / scales.prod(), rel=0.04)
    centres = [np.argwhere(one).mean(0) for one in (label, mask)]
    np.testing.assert_allclose(*centres, atol=0.3)  # about the foreground, not about the grid


def test_an_empty_mask_stays_empty():
    label = np.zeros((8, 8, 8), np.uint8)
    assert not deform(label, MasksOptions(), 0).any()
    assert rejection(label, label) is None


def test_each_reason_to_reject_a_mask():
    label = nested()
    assert rejection(label, label) is None
    assert rejection(np.where(label == 3, 1, label), label) == "class 3 vanished"
    shrunk = label.copy()
    shrunk[np.where(label == 3)[0].min() + 1 :][label[np.where(label == 3)[0].min() + 1 :] == 3] = 0
    assert "class 3 changed its volume 0." in str(rejection(shrunk, label))
    grown = np.where(ndimage.binary_dilation(label == 3, iterations=2), 3, label)
    assert "class 3 changed its volume" in str(rejection(grown, label))
    for axis in range(3):
        first = np.where(label.any(axis=tuple({0, 1, 2} - {axis})))[0]
        for shift in (-first.min(), label.shape[axis] - 1 - first.max()):
            assert rejection(np.roll(label, shift, axis), label) == "the mask was cut by the border"
    at_border = np.roll(label, -4, 0)  # it was like that already
    assert at_border[0].any() and rejection(at_border, at_border) is None


def test_two_fold_is_the_most_either_way():
    label = np.zeros((8, 8, 8), np.uint8)
    label[2, 2, 2:4] = 1
    for count, fine in ((1, True), (4, True), (5, False)):
        mask = np.zeros_like(label)
        mask[2, 3, 2 : 2 + min(count, 4)] = 1
        mask[2, 4, 2] = count == 5
        assert (rejection(mask, label) is None) == fine, count


@pytest.mark.parametrize("change", [{"rotation": -1.0}, {"elastic": -0.5}, {"translation": -2.0}])
def test_invalid_mask_options_are_refused(change):
    with pytest.raises(UserError, match=f"masks.{next(iter(change))}={next(iter(change.values()))}".replace(".0", "")):
        check_values(Options(masks=MasksOptions(**change)), "generate")


def test_an_unknown_mask_source_is_named_with_all_that_there_are():
    with pytest.raises(UserError, match="atlas: no such mask source.*all: real, deformed, population, composed"):
        load_masks(MasksOptions(source="atlas"))


@pytest.mark.slow
@settings(max_examples=15)
@given(seed=st.integers(0, 2**62))
def test_ignored_voxels_move_along_and_never_cause_a_rejection(seed):
    label = nested()
    blind = label.copy()
    blind[:2] = IGNORE  # far from the foreground, on the border
    mask, plain = deform(blind, MasksOptions(), seed), deform(label, MasksOptions(), seed)
    assert set(np.unique(mask)) <= {0, 1, 3, IGNORE}
    # The foreground moves as if nothing were ignored: its centre is the pivot.
    away = mask != IGNORE
    assert (mask[away] == plain[away]).mean() > 0.999
    assert rejection(np.where(mask == IGNORE, 0, mask), blind) == rejection(mask, label)


def test_ignored_voxels_neither_vanish_nor_grow_nor_touch_the_border():
    label = nested()
    blind = np.where(label == 0, IGNORE, label)
    assert rejection(blind, label) is None and rejection(label, blind) is None


def test_mirrored_masks_are_flipped_about_the_centre_of_the_foreground():
    label = nested((20, 22, 18))
    label[12:14, 11, 8] = 2  # one side differs from the other
    mirror = dataclasses.replace(STILL, mirror=True)
    made = [deform(label, mirror, seed) for seed in range(12)]
    flips = [mask for mask in made if (mask != label).any()]
    assert 2 <= len(flips) <= 10
    centre = np.argwhere(label > 0).mean(0)[0]
    expected = ndimage.affine_transform(
        (label == 1).astype(np.float32), np.diag([-1.0, 1, 1]), (2 * centre, 0, 0), order=1, mode="grid-constant"
    )
    for mask in flips:
        assert ((mask == 1) == (expected > 0.5)).mean() > 0.99
        assert np.argwhere(mask == 2).mean(0)[0] == pytest.approx(2 * centre - 12.5, abs=0.6)
