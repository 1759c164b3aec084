"""Derangements for shuffled masks, and the agreement of segmentations with masks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.evaluation.faithfulness import agreement, derangement

SCHEMA = LabelSchema(((0, "background"), (1, "a"), (2, "b")))
groups = st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=40)


@given(groups, st.integers(0, 2**62))
def test_no_item_is_mapped_to_itself_or_if_possible_its_own_group(names, seed):
    permutation = derangement(names, seed)
    assert sorted(permutation) == list(range(len(names)))
    assert all(i != j for i, j in enumerate(permutation))
    if max(Counter(names).values()) <= len(names) / 2:
        assert all(names[i] != names[j] for i, j in enumerate(permutation))


@given(groups, st.integers(0, 2**62))
def test_with_a_majority_group_the_others_still_change_groups(names, seed):
    (largest, _), *_ = Counter(names).most_common(1)
    permutation = derangement(names, seed)
    assert all(names[i] != names[j] for i, j in enumerate(permutation) if names[i] != largest)


@given(groups, st.integers(0, 2**62))
def test_derangement_depends_only_on_its_seed(names, seed):
    np.testing.assert_array_equal(derangement(names, seed), derangement(names, seed))


def test_different_seeds_give_different_derangements():
    names = [str(i // 2) for i in range(20)]
    assert len({tuple(derangement(names, seed)) for seed in range(10)}) > 5


def test_a_single_item_cannot_be_deranged():
    with pytest.raises(ValueError, match="single"):
        derangement(["a"], 0)
    assert derangement(["a", "a"], 0).tolist() == [1, 0]


def test_agreement_is_the_mean_foreground_dice_of_each_pair():
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[:2, :2] = 1  # 16 voxels
    mask[2:, 2:] = 2
    half = mask.copy()
    half[0, :2] = 0  # class 1: 8 of 16 voxels
    wrong = np.where(mask == 1, 2, np.where(mask == 2, 1, 0)).astype(np.uint8)
    values = agreement([mask, half, wrong], [mask] * 3, SCHEMA)
    np.testing.assert_allclose(values, [1, (2 * 8 / 24 + 1) / 2, 0])
    blind = np.where(mask != half, IGNORE, mask)
    np.testing.assert_allclose(agreement([mask, half], [blind] * 2, SCHEMA), 1)
    together = LabelSchema(SCHEMA.labels, regions=(("both", (1, 2)),))
    np.testing.assert_allclose(agreement([mask, half, wrong], [mask] * 3, together), [1, 2 * 24 / (24 + 32), 1])


def test_a_missing_mask_is_an_error_not_a_shorter_answer():
    mask = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(ValueError):
        agreement([mask, mask], [mask], SCHEMA)
