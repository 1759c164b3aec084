"""Edited boxes of scans: equal to the whole grid where both exist, bit for bit the host's beyond the band, and lean."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from generated_pairs import SCHEMA
from test_insertion import CORE, MARGIN, SHELL, options, stored

from medaug.cohort.manifest import Case, Manifest
from medaug.data.cases import load_cases, read_case
from medaug.diffusion.windows import place
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.options import MasksOptions, SamplerOptions
from medaug.synthesis.boxes import Boxes, box_space, boxed, own_labels, refuse_boxes
from medaug.synthesis.composed import ComposedMasks, Lesions
from medaug.synthesis.generation import Manner, generate_pairs
from medaug.synthesis.insertion import EditedMasks, Insertion, edited_masks, in_shell
from medaug.synthesis.recipes import Recipes, with_room

SIDES = [12, 10, 12]
BIG = (30, 26, 22)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Manifest:
    """Three scans that are larger than the model's grid, one with voxels half as large; lesions off the centre."""
    root, rng = tmp_path_factory.mktemp("big"), np.random.default_rng(0)
    cases = []
    for name, matrix in (("a", np.diag([1, 1, 1, 1])), ("b", np.diag([-1, 1, 1, 1])), ("c", np.diag([0.5, 1, 1, 1]))):
        label = np.full(BIG, 2, np.uint8)
        label[:2] = 0
        x, y, z = rng.integers(8, np.array(BIG) - 10)
        label[x : x + 2, y : y + 2, z] = 4
        label[20:22, 13, 11] = 4
        write_volume(root / f"{name}_label.nii.gz", label, matrix)
        for m in range(2):
            image = (100 + 30 * label + rng.normal(0, 8, BIG)).astype(np.int16)
            write_volume(root / f"{name}_{m}.nii.gz", image, matrix)
        cases.append(Case(name, (f"{name}_0.nii.gz", f"{name}_1.nii.gz"), f"{name}_label.nii.gz", f"subject_{name}"))
    return Manifest("toy", "", ("T1", "T2"), SCHEMA, tuple(cases), str(root))


def boxes_of(scans, card, remove=False) -> Boxes:
    lesions = Lesions.gathered(own_labels(scans, scans.cases, card.preprocessing), (CORE,))
    return Boxes(scans, box_space(card.preprocessing, SIDES), card.preprocessing.grid, lesions, remove)


def box_options(mode):
    return dataclasses.replace(options(mode), box=SIDES)


def masks_of(mode, lesions) -> EditedMasks:
    composed = ComposedMasks(MasksOptions(lesions=["core"], rotation=0.0, scaling=0.0), (CORE,))
    masks = edited_masks(composed, box_options(mode), ())
    assert isinstance(masks, EditedMasks)
    return masks.with_lesions(lesions)


def test_a_box_is_the_part_of_the_whole_scan_in_model_space(scans, card, tmp_path):
    """The oracle is the whole scan on a grid that holds it, made by the usual preprocessing."""
    boxes, seen = boxes_of(scans, card), set()
    for case in scans.cases[:2]:
        wide = dataclasses.replace(card.preprocessing, shape=BIG)
        [whole] = load_cases(scans, [case], wide, tmp_path, memory=True)
        for seed in range(4):
            box = boxes.at(case, seed)
            assert box.image.shape[1:] == tuple(SIDES) and box.inside.all()
            x, y, z = box.where
            if case.name == "b":  # the first axis points to the left
                x = slice(BIG[0] - x.stop, BIG[0] - x.start)
            np.testing.assert_array_equal(box.image, whole.image[:, x, y, z])
            np.testing.assert_array_equal(box.label, whole.label[x, y, z])
            again = boxed(scans, case, boxes.space, box.ends)
            np.testing.assert_array_equal(again.image, box.image)
            seen.add((case.name, str(box.where)))
    assert len(seen) >= 7, "boxes lie at random places"
    fine = boxes.at(scans.cases[2], 0)
    assert fine.where[0].stop - fine.where[0].start == 24 and fine.image.shape[1:] == tuple(SIDES)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["insert", "remove"])
def test_only_the_band_of_a_box_is_changed(mode, scans, card, model, tmp_path):
    boxes = boxes_of(scans, card, mode == "remove")
    masks = masks_of(mode, boxes.lesions)
    hosts = with_room(masks, [boxes.at(case, 0) for case in scans.cases], boxes)
    assert [host.case.name for host in hosts] == ["a", "b", "c"]
    sampler = SamplerOptions(num_inference_steps=2)
    recipes = Recipes(hosts, masks, box_options(mode), sampler, "composed", "sum", boxes=boxes)
    generate_pairs(model, card, recipes, 5, 2, tmp_path, Manner(recipes.record, Insertion(scans, MARGIN, 1)))
    for line in (tmp_path / "provenance.jsonl").read_text().splitlines():
        record = json.loads(line)
        recipe, host, mask = recipes(record["index"])
        volumes, values = stored(tmp_path, record)
        real, own = read_case(scans, host.case)
        where = tuple(slice(*ends) for ends in record["mask_parameters"]["where"])
        assert where == host.where and volumes[0].shape == BIG
        outside = np.ones(BIG, bool)
        outside[where] = False
        untouched = outside.copy()
        space = box_space(card.preprocessing, SIDES)
        weight = Insertion(scans, MARGIN, 1)._weight(host, mask)
        assert not weight[in_shell(weight.shape, 1)].any(), "the band ends within the box"
        untouched[where] = space.invert_label((weight > 0).astype(np.uint8), host.placement) == 0
        for volume, before in zip(volumes, real.array, strict=True):
            np.testing.assert_array_equal(volume[untouched], before[untouched].astype(real.dtype))
            assert (volume[~untouched] != before[~untouched]).mean() > 0.3
        expected = SCHEMA.to_values(own)
        changed = np.zeros(BIG, bool)
        changed[where] = space.invert_label((mask != host.label).astype(np.uint8), host.placement) > 0
        np.testing.assert_array_equal(values[~changed], expected[~changed])
        assert (values == 4).sum() - (expected == 4).sum() in ((range(2, 20)) if mode == "insert" else range(-20, -1))
        np.testing.assert_allclose(nib.load(tmp_path / record["label"]).affine, real.affine)


def test_an_unlabelled_scan_gets_a_box_where_lesions_occur(scans, card):
    boxes = boxes_of(scans, card)
    case = dataclasses.replace(scans.cases[0], label=None)
    box = boxes.at(case, 3)
    assert set(np.unique(box.label)) == {255}
    shares = np.array([(side.start + side.stop) / 2 for side in box.where]) / BIG
    assert np.abs(np.array(boxes.lesions.centres) - shares).max(1).min() < 0.06


def test_a_lesion_that_a_box_may_cut_is_not_removed():
    label = np.full(SIDES, SHELL, np.uint8)
    label[5:7, 5, 5] = CORE
    label[0:3, 2, 2] = CORE
    lesions = Lesions.gathered([(label, "s")], (CORE,))
    made = masks_of("remove", lesions).make(label, 0)
    assert (made[5:7, 5, 5] == SHELL).all() and (made[0:3, 2, 2] == CORE).all()
    cut = np.where(np.indices(SIDES)[0] > 3, SHELL, label).astype(np.uint8)
    assert "does not fit" in str(masks_of("remove", lesions).rejection(cut, cut))


def test_what_boxes_refuse(card):
    composed = ComposedMasks(MasksOptions(lesions=["core"]), (CORE,))
    with pytest.raises(UserError, match=r"generate.box: the screening rules judge whole scans, not boxes; set screen"):
        edited_masks(composed, box_options("insert"), ["integrity"])
    network = card.options["network"] | {"coordinates": True}
    cropped = dataclasses.replace(card.preprocessing, crop="body")
    placed = dataclasses.replace(card, options=card.options | {"network": network}, preprocessing=cropped)
    with pytest.raises(UserError, match="generate.box: the model was trained with data.crop=body"):
        refuse_boxes(placed)
    corrected = dataclasses.replace(card.preprocessing, bias_correction=True)
    with pytest.raises(UserError, match="generate.box: the model was trained with data.bias_correction"):
        refuse_boxes(dataclasses.replace(card, preprocessing=corrected))


def test_a_box_knows_its_place_in_the_grid_of_the_model(scans, card):
    """As training on patches and windows do, where the grid holds the whole scan."""
    boxes = boxes_of(scans, card)
    for grid in (BIG, (40, 36, 32)):
        boxes.grid = dataclasses.replace(card.preprocessing, shape=grid).grid
        for case in scans.cases[:2]:
            box = boxes.at(case, 1)
            x, y, z = box.where
            if case.name == "b":  # the first axis points to the left
                x = slice(BIG[0] - x.stop, BIG[0] - x.start)
            offsets = [(side - own) // 2 for side, own in zip(grid, BIG, strict=True)]
            x, y, z = (slice(p.start + o, p.stop + o) for p, o in zip((x, y, z), offsets, strict=True))
            torch.testing.assert_close(box.place((1, 1, 1)), place((x, y, z), grid))
    # Positions of blocks of two voxels, also for boxes that begin within one.
    blocks = [(start / 2, stop / 2 - 1) for start, stop in ((p.start, p.stop) for p in (x, y, z))]
    expected = [2 * end / (side // 2 - 1) - 1 for ends, side in zip(blocks, grid, strict=True) for end in ends]
    torch.testing.assert_close(box.place((2, 2, 2)), torch.tensor(expected))


@pytest.mark.slow
def test_a_model_of_patches_generates_boxes_with_their_place(scans, card, tmp_path):
    options_ = card.options | {"data": {"patch": SIDES}}
    patchy = dataclasses.replace(card, options=options_)
    model, boxes, places = patchy.build().eval(), boxes_of(scans, card), []
    model.network.register_forward_pre_hook(lambda module, inputs: places.append(inputs[2].place[0]))
    masks = masks_of("insert", boxes.lesions)
    hosts = [boxes.at(case, 0) for case in scans.cases[:1]]
    sampler = SamplerOptions(num_inference_steps=2)
    recipes = Recipes(hosts, masks, box_options("insert"), sampler, "composed", "sum", boxes=boxes)
    generate_pairs(model, patchy, recipes, 1, 1, tmp_path, Manner(recipes.record, Insertion(scans, MARGIN, 1)))
    box = recipes(0)[1]
    assert len(places) == 2 and all(torch.equal(place, box.place(model.codec.stride)) for place in places)


@pytest.mark.slow
def test_memory_is_bounded_by_the_box_and_the_stored_scan(tmp_path):
    """At 96^3, so that the test is quick; the figures in the docs are those of 256^3."""
    peaks = {}
    for box in ("32", "96"):
        command = [sys.executable, __file__, "96", box, str(tmp_path / box)]
        paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
        )
        peaks[box] = int(found.stdout.split()[-1])
    assert peaks["32"] < peaks["96"] / 3


def measure(side: int, box: int, folder: Path) -> int:
    """Peak memory in bytes, beyond that of the imports, of an insertion into a host of side^3 with a box of box^3."""
    from generated_pairs import model_options

    from medaug.data.preprocessing import Preprocessing
    from medaug.training.checkpoint import Card

    rng = np.random.default_rng(0)
    label = np.full((side,) * 3, 2, np.uint8)
    middle = side // 2
    label[middle : middle + 3, middle : middle + 3, middle : middle + 3] = 4
    write_volume(folder / "label.nii.gz", label, np.eye(4))
    image = rng.integers(0, 50, size=label.shape, dtype=np.int16)
    write_volume(folder / "image.nii.gz", image, np.eye(4))
    del image, label
    case = Case("a", ("image.nii.gz",), "label.nii.gz", "a")
    scans = Manifest("toy", "", ("T1",), SCHEMA, (case,), str(folder))
    space = Preprocessing((side,) * 3, None)
    card = Card("toy", model_options(), space, SCHEMA, ("T1",), {"train": [], "val": []}, phantom=False)
    model, sampler = card.build().eval(), SamplerOptions(num_inference_steps=1)
    torch.set_num_threads(1)
    chosen = dataclasses.replace(options("insert"), box=[box] * 3)
    begun = peak()
    composed = ComposedMasks(MasksOptions(lesions=["core"], rotation=0.0, scaling=0.0), (CORE,))
    lesions = Lesions.gathered(own_labels(scans, scans.cases, space), (CORE,))
    masks = edited_masks(composed, chosen, ())
    assert isinstance(masks, EditedMasks)
    boxes = Boxes(scans, box_space(space, chosen.box), space.grid, lesions, remove=False)
    hosts = [boxes.at(case, 0)]
    recipes = Recipes(hosts, masks.with_lesions(lesions), chosen, sampler, "composed", "sum", boxes=boxes)
    generate_pairs(model, card, recipes, 1, 1, folder / "out", Manner(recipes.record, Insertion(scans, MARGIN, 1)))
    return peak() - begun


def peak() -> int:
    """Peak memory of this process in bytes; `ru_maxrss` would include that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    place = Path(sys.argv[3])
    place.mkdir()
    print(measure(int(sys.argv[1]), int(sys.argv[2]), place))
