"""Batches as a function of the step alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from medaug.cohort.manifest import Case
from medaug.data.attributes import Attribute, AttributeEncoder
from medaug.data.batches import FixedBatches, StepsFrom, TrainingBatches, shuffled_index
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.data.transforms import light_affine

ATTRIBUTES = AttributeEncoder((Attribute("site", ("A", "B", "C")), Attribute("n", (), (2.0,), (0.5,), (0.0,), (9.0,))))


def make_cases(num: int, labelled=lambda i: True) -> list[ModelCase]:
    """Case i is filled with i / 100, so that a sample shows which case it comes from."""
    placement = Placement((4, 4, 4), ((0, 1), (1, 1), (2, 1)), (4, 4, 4), (0.0,), (1.0,))
    return [
        ModelCase(
            case=Case(f"c{i}", (f"c{i}.nii.gz",), None, f"c{i}", "train", {"site": "ABC"[i % 3], "n": float(i)}),
            image=np.full((1, 4, 4, 4), i / 100, np.float32),
            label=np.full((4, 4, 4), i % 3, np.uint8) if labelled(i) else None,
            affine=np.eye(4),
            dtype=np.dtype(np.int16),
            placement=placement,
        )
        for i in range(num)
    ]


def origin(batch) -> list[int]:
    return [round(100 * float(image[0, 0, 0, 0])) for image in batch["image"]]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def joined(batches):
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(length, epoch, seed):
    order = [shuffled_index(epoch * length + place, length, seed) for place in range(length)]
    assert sorted(order) == list(range(length))


def test_epochs_and_seeds_differ():
    def order(epoch, seed):
        return tuple(shuffled_index(epoch * 50 + place, 50, seed) for place in range(50))

    assert len({order(epoch, seed) for epoch in range(3) for seed in range(3)}) == 9


def test_batches_run_through_the_epochs():
    """Batches of 3 over 7 cases: every seven consecutive samples are all seven cases, across batch borders."""
    batches = TrainingBatches(make_cases(7), 3, seed=5)
    seen = [i for step in range(7) for i in origin(batches[step])]
    assert all(sorted(seen[start : start + 7]) == list(range(7)) for start in (0, 7, 14))


@pytest.mark.parametrize("augment", [None, light_affine])
def test_a_batch_depends_on_its_step_alone(augment):
    one, other = (TrainingBatches(make_cases(5), 2, 1, augment) for _ in range(2))
    forwards = [one[step] for step in range(6)]
    backwards = [other[step] for step in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    seeds = joined(forwards)["seed"]
    assert len(set(seeds.tolist())) == 12
    assert not same(one[0], TrainingBatches(make_cases(5), 2, 2, augment)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_together_give_the_batches_of_one(workers):
    cases = make_cases(5, labelled=lambda i: i != 3)

    def batches(size, rank, world):
        data = TrainingBatches(cases, size, 7, light_affine, rank, world)
        return list(DataLoader(data, batch_size=None, sampler=StepsFrom(0, 4), num_workers=workers))

    single, first, second = batches(4, 0, 1), batches(2, 0, 2), batches(2, 1, 2)
    assert len(single) == 4
    assert all(same(a, joined([b, c])) for a, b, c in zip(single, first, second, strict=True))


def test_a_resumed_run_gets_the_remaining_batches():
    data = TrainingBatches(make_cases(5), 2, 0)
    whole = list(DataLoader(data, batch_size=None, sampler=StepsFrom(0, 7)))
    rest = list(DataLoader(data, batch_size=None, sampler=StepsFrom(3, 7)))
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert len(StepsFrom(3, 7)) == 7, "the training loop counts from the start of the run"


def test_batch_contents():
    batch = TrainingBatches(make_cases(4, labelled=lambda i: i % 2 == 0), 4, 0)[0]
    assert batch["image"].shape == (4, 1, 4, 4, 4) and batch["image"].dtype == torch.float32
    assert batch["label"].shape == (4, 4, 4, 4) and batch["label"].dtype == torch.int64
    assert batch["labelled"].tolist() == [i % 2 == 0 for i in origin(batch)]
    assert not batch["label"][~batch["labelled"]].any()
    assert batch["attributes"].shape == (4, 0) and batch["attributes"].dtype == torch.float32


@pytest.mark.parametrize(
    "batches",
    [
        TrainingBatches(make_cases(7), 7, 0, light_affine, attributes=ATTRIBUTES),
        FixedBatches(make_cases(7), 7, 0, ATTRIBUTES),
    ],
)
def test_every_sample_has_the_attributes_of_its_case(batches):
    batch = batches[0]
    of = [min(range(7), key=lambda i: abs(i / 100 - float(image.mean()))) for image in batch["image"]]
    assert sorted(of) == list(range(7))
    encoded = [[*(float(c == i % 3) for c in range(3)), 1.0, (i - 2) / 0.5, 1.0] for i in of]
    torch.testing.assert_close(batch["attributes"], torch.tensor(encoded))


def test_cases_are_not_modified():
    cases = make_cases(3)
    TrainingBatches(cases, 3, 0)[0]["image"].zero_()
    assert [float(case.image.max()) for case in cases] == pytest.approx([0, 0.01, 0.02])


def test_validation_uses_every_case_once_with_fixed_seeds():
    one, two = FixedBatches(make_cases(5), 2, 3), FixedBatches(make_cases(5), 5, 3)
    batches = list(DataLoader(one, batch_size=None))
    assert [origin(batch) for batch in batches] == [[0, 1], [2, 3], [4]]
    assert same(joined(batches), two[0]), "a case's seed does not depend on the batch size"
    with pytest.raises(IndexError):
        one[3]


def padded(case: ModelCase, filling: float) -> ModelCase:
    """A case on a grid of 7 slices that fills slices 2 to 5."""
    image = np.full((1, 4, 4, 7), filling, np.float32)
    image[..., 1:5] = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4))
    return replace(case, image=image, label=np.zeros((4, 4, 7), np.uint8))


def test_padding_is_not_augmented_for_2d_networks():
    cases = [[padded(case, filling) for case in make_cases(3)] for filling in (-1, 0.7)]
    one, other = (TrainingBatches(some, 12, 0, light_affine, sliced=True)[0] for some in cases)
    assert one["inside"].tolist() == [[False, True, True, True, True, False, False]] * 12
    assert torch.equal(one["image"][..., 1:5], other["image"][..., 1:5])
    assert (one["image"][..., [0, 5, 6]] == -1).all() and (other["image"][..., [0, 5, 6]] == 0.7).all()
    one, other = (TrainingBatches(some, 12, 0, light_affine)[0] for some in cases)
    assert not torch.equal(one["image"][..., 1:5], other["image"][..., 1:5])  # volumes are shifted as a whole


def test_a_single_slice_is_augmented_within_its_plane():
    case = replace(make_cases(1)[0], image=np.random.default_rng(0).uniform(-1, 1, (1, 9, 9, 1)).astype(np.float32))
    case = replace(case, label=(case.image[0] > 0).astype(np.uint8))
    batch = TrainingBatches([case], 20, 0, light_affine, sliced=True)[0]
    assert batch["image"].shape == (20, 1, 9, 9, 1) and batch["image"].isfinite().all()
    assert len({tuple(image.flatten().tolist()) for image in batch["image"]}) > 5


def test_the_field_of_view_moves_with_the_image():
    shape = (10, 9, 8)
    case = make_cases(1)[0]
    placement = replace(case.placement, shape=(6, 9, 5), resampled=(6, 9, 5))
    case = replace(case, image=np.zeros((1, *shape), np.float32), placement=placement)
    assert case.inside.sum() == 6 * 9 * 5 and case.inside[case.field_of_view].all()
    case = replace(case, image=2 * case.inside[None].astype(np.float32) - 1, label=case.inside.astype(np.uint8))
    fixed, moving = (TrainingBatches([case], 12, 0, light_affine).of(None, moves)[0] for moves in (False, True))
    assert all(torch.equal(fixed[key], moving[key]) for key in fixed if key != "field_of_view")
    assert torch.equal(fixed["field_of_view"], torch.from_numpy(case.inside).expand(12, -1, -1, -1))
    assert torch.equal(moving["field_of_view"], moving["label"].bool()), "the label is the field of view here"
    assert not torch.equal(moving["field_of_view"], fixed["field_of_view"])
    assert torch.equal(FixedBatches([case], 1, 0)[0]["field_of_view"][0], torch.from_numpy(case.inside))
