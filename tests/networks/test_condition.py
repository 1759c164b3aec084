"""Conditions keep every voxel of masks and images, and unknown inputs differ from all known ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.networks.condition import embed, embedded_channels, one_hot, signed_planes


def embed_mask(label: Tensor, known: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Of a label map with two classes beside background."""
    return embed(signed_planes(label, 3), known, stride)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 1), (2, 2, 2), (4, 4, 4)])
def test_a_lesion_of_one_voxel_reaches_the_condition_in_every_position(stride):
    known = torch.ones(1, 2)
    empty = embed_mask(torch.zeros(1, 4, 4, 4).long(), known, stride)
    assert empty.shape == (1, embedded_channels(2, stride), *(4 // s for s in stride))
    seen = set()
    for place in itertools.product(range(4), repeat=3):
        label = torch.zeros(1, 4, 4, 4).long()
        label[(0, *place)] = 2
        changed = (embed_mask(label, known, stride) - empty).nonzero()
        assert len(changed) == 1, "one voxel is one entry"
        where = tuple(changed[0].tolist())
        assert where[2:] == tuple(p // s for p, s in zip(place, stride, strict=True))
        seen.add(where)
    assert len(seen) == 64, "no two positions look alike"


def test_absent_and_unknown_differ():
    label = torch.tensor([[[[0, 1], [2, 0]]]])
    both = embed_mask(label, torch.tensor([[1, 1]]), (1, 1, 1))[0]
    assert both[:2].flatten(1).tolist() == [[-1, 1, -1, -1], [-1, -1, 1, -1]]
    assert (both[2:] == 1).all()
    first = embed_mask(label, torch.tensor([[1, 0]]), (1, 1, 1))[0]
    assert torch.equal(first[0], both[0]) and not first[1].any()
    assert (first[2] == 1).all() and (first[3] == 0).all()
    other = torch.randint(0, 3, label.shape, generator=torch.Generator().manual_seed(0))
    null = torch.zeros(1, 2)
    assert torch.equal(embed_mask(label, null, (1, 1, 1)), embed_mask(other, null, (1, 1, 1)))
    assert not embed_mask(label, null, (1, 1, 1)).any()


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_an_ignored_voxel_is_unknown_in_every_plane_and_changes_nothing_else(stride):
    label = torch.randint(0, 3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    known, ignored = torch.ones(1, 2), label.clone()
    ignored[0, 1, 2, 3] = IGNORE
    before, after = embed_mask(label, known, stride), embed_mask(ignored, known, stride)
    changed = (before != after).nonzero()
    assert len(changed) == 2 and not after[before != after].any()
    assert (changed[:, 2:] == torch.tensor([1, 2, 3]) // torch.tensor(stride)).all()


def test_one_hot_equals_that_of_the_schema():
    schema = LabelSchema(((0, "background"), (1, "a"), (7, "b")), ignore=3)
    label = torch.tensor([0, 1, 2, IGNORE]).reshape(1, 4, 1, 1)
    planes = one_hot(label, schema.num_classes)
    assert planes.shape == (1, 3, 4, 1, 1)
    np.testing.assert_array_equal(planes[0].numpy(), schema.one_hot(label[0].numpy()))
