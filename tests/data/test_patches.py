"""Patches: a function of their seed, at the codec's blocks, around every class, and read without the whole volume."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_batches import make_cases

from medaug.data.batches import FixedBatches, TrainingBatches, as_tensors
from medaug.data.patches import REMEMBERED, Patches, find_classes
from medaug.data.transforms import light_affine
from medaug.diffusion.windows import scaled
from medaug.networks.conditional import _positions

GRID, SHAPE, STRIDE = (24, 16, 20), (8, 8, 12), (2, 2, 2)


@pytest.fixture(scope="module")
def cases():
    """Scans whose voxels hold their own position, with a large class 1 and a class 2 of two voxels."""
    image = np.arange(np.prod(GRID), dtype=np.float32).reshape(1, *GRID)
    label = np.zeros(GRID, np.uint8)
    label[4:20, 3:12, 2:18] = 1
    label[5, 5, 5] = label[18, 15, 19] = 2
    return [replace(case, image=image, label=label) for case in make_cases(3)]


def patches_of(cases, foreground=0.8):
    return Patches(SHAPE, STRIDE, foreground, {c.case.name: find_classes(c.label, 3, 0) for c in cases})


def test_every_class_is_found_with_its_extent_and_voxels_chosen_without_preference(cases):
    found = find_classes(cases[0].label, 3, 0)
    assert found.extent == {1: (16, 9, 16), 2: (14, 11, 15)}
    assert found.voxels[2].tolist() in ([[5, 5, 5], [18, 15, 19]], [[18, 15, 19], [5, 5, 5]])
    assert len(found.voxels[1]) == REMEMBERED == len(np.unique(found.voxels[1], axis=0))
    assert (cases[0].label[tuple(found.voxels[1].T)] == 1).all()
    # 1,000 of 2,303 voxels: the mean of x is 11.5 +- 0.11 (their standard deviation is 4.6)
    assert found.voxels[1][:, 0].mean() == pytest.approx(11.5, abs=0.5)


def test_patches_lie_at_blocks_and_each_class_has_its_share(cases):
    patches = patches_of(cases)
    boxes = [patches.box(cases[0], seed) for seed in range(400)]
    assert boxes == [patches.box(cases[0], seed) for seed in range(400)]
    for axis, (side, size) in enumerate(zip(GRID, SHAPE, strict=True)):
        starts = {box[axis].start for box in boxes}
        assert starts == set(range(0, side - size + 1, 2))
        assert all(box[axis].stop - box[axis].start == size for box in boxes)
    rare = np.mean([(cases[0].label[box] == 2).any() for box in boxes])
    at_random = Patches(SHAPE, STRIDE)
    chance = np.mean([(cases[0].label[at_random.box(cases[0], seed)] == 2).any() for seed in range(400)])
    assert rare > 0.4 + chance / 2  # 0.8 / 2 of the patches are placed around class 2
    everywhere = Counter(str(at_random.box(cases[0], seed)) for seed in range(4000))
    assert len(everywhere) == 9 * 5 * 5 and max(everywhere.values()) < 40  # 18 expected


def test_samples_are_the_voxels_of_their_patch_and_know_their_place(cases):
    patches = patches_of(cases)
    batches = TrainingBatches(cases, 3, 5).of(patches)
    batch = batches[7]
    for i in range(3):
        corner = batch["image"][i, 0, 0, 0, 0].int().item()
        box = tuple(slice(s, s + n) for s, n in zip(np.unravel_index(corner, GRID), SHAPE, strict=True))
        assert torch.equal(batch["image"][i, 0], torch.from_numpy(cases[0].image[0][box]))
        assert torch.equal(batch["label"][i], torch.from_numpy(cases[0].label[box]).long())
        blocks = tuple(slice(part.start // 2, part.stop // 2) for part in box)
        whole = _positions(torch.zeros(1, 1, *(n // 2 for n in GRID)), torch.empty(0))
        own = _positions(torch.zeros(1, 1, *(n // 2 for n in SHAPE)), batch["place"][i : i + 1])
        torch.testing.assert_close(own, whole[(..., *blocks)])
        assert scaled(blocks, STRIDE) == box
    shared = [TrainingBatches(cases, 1, 5, None, rank, 3).of(patches)[7] for rank in range(3)]
    assert all(torch.equal(torch.cat([part[key] for part in shared]), batch[key]) for key in batch)
    fixed = FixedBatches(cases, 3, 5, patches=patches)
    assert torch.equal(fixed[0]["image"], fixed[0]["image"]) and fixed[0]["image"].shape == (3, 1, *SHAPE)


def test_augmented_patches_see_what_lies_around_them(cases):
    constant = [replace(case, image=np.full_like(case.image, 0.5)) for case in cases]
    batch = TrainingBatches(constant, 12, 5, light_affine).of(patches_of(cases))[0]
    assert batch["image"].shape == (12, 1, *SHAPE) and batch["label"].shape == (12, *SHAPE)
    torch.testing.assert_close(batch["image"], torch.full_like(batch["image"], 0.5))
    plain = TrainingBatches(cases, 12, 5).of(patches_of(cases))[0]
    assert torch.equal(batch["place"], plain["place"])
    same = (batch["label"] == plain["label"]).flatten(1).all(1)
    assert 2 <= same.sum() <= 10  # half of the samples are left as they are


def test_tiles_are_the_whole_scan_once(cases):
    seen = np.zeros(GRID, int)
    for box in patches_of(cases).tiles(cases[0]):
        seen[box] += 1
    assert (seen == 1).all()


def test_a_patch_of_a_volume_on_disk_is_read_without_the_rest(cases, tmp_path: Path):
    """The kernel says how many bytes of the mapped file are in memory; the file is sparse and takes no disk."""
    path, side = tmp_path / "image.npy", 640
    image = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1, side, side, side))
    image.flush()
    del image
    case = replace(cases[0], image=np.load(path, mmap_mode="r"), label=None)
    patches = Patches((64, 64, 64), STRIDE)
    sample = as_tensors(case, box=patches.box(case, 1))
    assert sample["image"].shape == (1, 64, 64, 64)
    maps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    resident = sum(1024 * int(re.search(r"Rss:\s+(\d+) kB", part)[1]) for part in maps)
    assert 0 < resident < 0.1 * path.stat().st_size  # 1 GiB
