"""Edited scans: every voxel beyond the band is the host's own, and the label is the host's with the change in it."""

from __future__ import annotations

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from generated_pairs import SCHEMA
from scipy.ndimage import distance_transform_edt

from medaug.data.cases import load_cases, read_case
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis.composed import ComposedMasks
from medaug.synthesis.generation import Manner, generate_pairs
from medaug.synthesis.insertion import EditedMasks, Insertion, edited_masks, unlabelled_host
from medaug.synthesis.masks import TrainingMasks
from medaug.synthesis.real import RealMasks
from medaug.synthesis.recipes import Recipes, with_room

CORE, SHELL = 2, 1
MARGIN = 2


def small_lesion(x: int) -> np.ndarray:
    """A shell that is filled, with a core of 2 x 2 x 1 voxels."""
    mask = np.zeros((16,) * 3, np.uint8)
    mask[4:12, 4:12, 4:12] = SHELL
    mask[x : x + 2, 7:9, 8] = CORE
    return mask


TRAINING = TrainingMasks(
    [small_lesion(x) for x in (5, 6, 8)], [{"case": name, "subject": f"subject_{name}"} for name in "abc"]
)


def options(mode: str) -> GenerateOptions:
    return GenerateOptions(mode=mode, margin=MARGIN, resample=1, num=5, guidance_scale=1.0)


@pytest.fixture(scope="module")
def hosts(cohort, card, tmp_path_factory):
    return load_cases(cohort, cohort.cases, card.preprocessing, tmp_path_factory.mktemp("cache"), memory=True)


@pytest.fixture(scope="module")
def edited(cohort, card, model, hosts, tmp_path_factory):
    """Function of a mode that returns hosts, masks, records and the folder of five edited scans."""

    def run(mode: str, hosts=hosts, card=card):
        composed = ComposedMasks(MasksOptions(lesions=["core"], rotation=0.0, scaling=0.0), (CORE,))
        source = edited_masks(composed, options(mode), ()).fitted(TRAINING)
        recipes = Recipes(hosts, source, options(mode), SamplerOptions(num_inference_steps=2), "composed", "sum")
        folder = tmp_path_factory.mktemp(mode)
        manner = Manner(recipes.record, Insertion(cohort, MARGIN, 1))
        generate_pairs(model, card, recipes, 5, 2, folder, manner)
        records = [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]
        return [recipes(i) for i in range(5)], records, folder

    return run


def stored(folder, record):
    volumes = [np.asarray(nib.load(folder / file).dataobj) for file in record["images"]]
    return volumes, np.asarray(nib.load(folder / record["label"]).dataobj)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["insert", "remove"])
def test_every_voxel_beyond_the_band_is_the_hosts_own(mode, edited, cohort, card):
    planned, records, folder = edited(mode)
    touched = 0
    for (recipe, host, mask), record in zip(planned, records, strict=True):
        volumes, values = stored(folder, record)
        real, label = read_case(cohort, host.case)
        changed = mask != host.label
        near = distance_transform_edt(~changed) < MARGIN + 1
        allowed = card.preprocessing.invert_label(near.astype(np.uint8), host.placement) > 0
        for volume, before in zip(volumes, real.array, strict=True):
            assert volume.dtype == real.dtype
            np.testing.assert_array_equal(volume[~allowed], before.astype(real.dtype)[~allowed])
            touched += int((volume[allowed] != before[allowed]).sum())
        here = card.preprocessing.invert_label(changed.astype(np.uint8), host.placement) > 0
        np.testing.assert_array_equal(values[~here], SCHEMA.to_values(label)[~here])
        if mode == "insert":
            assert here.any() and set(np.unique(values[here])) == {SCHEMA.values[CORE]}
        else:
            assert not (values[here] == SCHEMA.values[CORE]).any()
        assert record["region"] == [[0, side] for side in values.shape]
        assert record["mask_parameters"]["mode"] == mode and recipe.mask_source == "composed"
        assert set(record["subjects"]) == {host.case.subject, *TRAINING.subjects}
    assert touched > 100, "the region is generated"


def test_without_a_change_of_intensities_the_scan_is_restored(cohort, card, hosts):
    assert "plain" in {host.case.name for host in hosts}
    for host in hosts:
        mask = np.array(host.label)
        mask[6:9, 6:9, 6:9] = SHELL + CORE - mask[6:9, 6:9, 6:9].clip(1, 2)
        volumes, _ = Insertion(cohort, MARGIN, 1).on_host_grid(card, host, mask, np.asarray(host.image))
        real, _ = read_case(cohort, host.case)
        if host.case.name == "plain":  # on the model's grid, so only intensities beyond the percentiles are clipped
            for volume, before in zip(volumes, real.array, strict=True):
                low, high = np.percentile(before, [1, 99])
                usual = (before > low) & (before < high)
                assert np.abs(volume.astype(float) - before)[usual].max() <= 1.5


def test_the_sample_meets_the_host_at_the_border_in_the_mean(cohort, card, hosts):
    host = next(host for host in hosts if host.case.name == "plain")
    mask = np.array(host.label)
    mask[6:9, 6:9, 6:9] = CORE
    darker = np.asarray(host.image) - 0.4
    volumes, _ = Insertion(cohort, MARGIN, 1).on_host_grid(card, host, mask, darker)
    real, _ = read_case(cohort, host.case)
    distance = distance_transform_edt(mask == host.label)
    band = (distance > (MARGIN + 1) / 2) & (distance < MARGIN + 1)
    for volume, before in zip(volumes, real.array, strict=True):
        assert abs((volume.astype(float) - before)[band].mean()) < 0.02 * np.ptp(before)


@pytest.mark.slow
def test_a_host_without_a_label_gets_the_lesion_and_is_unknown_elsewhere(edited, hosts, card):
    ignoring = dataclasses.replace(card, schema=dataclasses.replace(SCHEMA, ignore=255))
    blind = [unlabelled_host(dataclasses.replace(h, case=dataclasses.replace(h.case, label=None))) for h in hosts]
    _, records, folder = edited("insert", blind, ignoring)
    _, values = stored(folder, records[0])
    assert set(np.unique(values)) <= {255, SCHEMA.values[CORE], SCHEMA.values[SHELL]}
    assert (values == SCHEMA.values[CORE]).sum() < 12 and (values == 255).mean() > 0.9 and not (values == 0).any()


def test_what_the_mode_refuses():
    composed = ComposedMasks(MasksOptions(lesions=["core"]), (CORE,))
    assert edited_masks(RealMasks(), GenerateOptions(), ["near_copies"]).parameters == {}
    with pytest.raises(UserError, match="mode=insert: needs masks=composed; set it, and masks.lesions"):
        edited_masks(RealMasks(), options("insert"), ())
    with pytest.raises(UserError, match="mode=remove: screen.rules has near_copies, which rejects copies"):
        edited_masks(composed, options("remove"), ["integrity", "near_copies"])
    masks = edited_masks(composed, options("insert"), ["integrity"])
    assert isinstance(masks, EditedMasks) and masks.parameters["replace"] is False


def test_the_known_part_is_all_but_the_band(hosts, cohort):
    host = hosts[0]
    mask = np.array(host.label)
    mask[7, 7, 7] = SHELL if mask[7, 7, 7] == CORE else CORE
    inpainting = Insertion(cohort, MARGIN, 3).inpainting([host], [mask], torch.device("cpu"))
    away = np.sqrt(((np.indices(mask.shape) - 7) ** 2).sum(0))
    np.testing.assert_array_equal(inpainting.region[0, 0].numpy(), away < MARGIN + 1)
    assert inpainting.resample == 3 and inpainting.known.shape == (1, *host.image.shape)


@pytest.mark.slow
def test_hosts_in_which_lesions_do_not_fit_are_left_out(hosts):
    source = edited_masks(ComposedMasks(MasksOptions(), (CORE,)), options("insert"), ()).fitted(TRAINING)
    full = dataclasses.replace(hosts[0], label=np.full_like(hosts[0].label, CORE))
    assert with_room(source, [full, *hosts]) == hosts and with_room(source, [full]) == []


def test_no_lesion_is_put_into_the_air_around_the_body(hosts):
    source = edited_masks(ComposedMasks(MasksOptions(), (CORE,)), options("insert"), ()).fitted(TRAINING)
    side = TRAINING.labels[0].shape[0]
    body = np.zeros((1, side, side, side), np.float32) - 1
    body[:, 7:, 2:14, 2:14] = np.random.default_rng(0).uniform(0, 0.3, body[:, 7:, 2:14, 2:14].shape)
    label = np.where(TRAINING.labels[0] == CORE, SHELL, TRAINING.labels[0])
    host = dataclasses.replace(hosts[0], image=body, label=label)
    recipes = Recipes([host], source, options("insert"), SamplerOptions(), "composed", "sum")
    made = [recipes(i)[2] for i in range(15)]
    assert all(np.argwhere(mask == CORE)[:, 0].min() >= 6 for mask in made)
    kinds = {kind for counts in recipes.rejected.values() for kind in counts}
    assert "outside the body" in kinds
