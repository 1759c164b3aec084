"""Composed masks: lesions land where lesions occur, whole, with their classes, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.errors import UserError
from medaug.options import MasksOptions
from medaug.synthesis.composed import ComposedMasks, Lesions
from medaug.synthesis.masks import TrainingMasks
from medaug.synthesis.sources import load_masks

SIDE = 20
STILL = MasksOptions(source="composed", lesions=["rim", "core"], rotation=0.0, scaling=0.0)
OTHER, LIVER, RIM, CORE = 1, 2, 3, 4


def organ(lesion: tuple[int, int, int] | None = None) -> np.ndarray:
    """A body of class 1 with a box of class 2 in it, and in that a lesion with rim and core."""
    mask = np.zeros((SIDE,) * 3, np.uint8)
    mask[1:19, 1:19, 1:19] = OTHER
    mask[3:15, 4:16, 5:17] = LIVER
    if lesion is not None:
        x, y, z = lesion
        mask[x : x + 4, y : y + 3, z : z + 3] = RIM
        mask[x + 1 : x + 3, y + 1, z + 1] = CORE
    return mask


TRAINING = TrainingMasks(
    [organ((5, 6, 7)), organ((9, 11, 12)), organ()], [{"case": name, "subject": name.upper()} for name in "abc"]
)


def source(options: MasksOptions = STILL, training: TrainingMasks = TRAINING) -> ComposedMasks:
    return ComposedMasks(options, (RIM, CORE)).fitted(training)


def test_a_lesion_is_placed_whole_into_the_tissue_where_lesions_occur():
    masks, host = source(), organ()
    assert masks.lesions.tissue == (LIVER,) and masks.subjects == {"A", "B"}
    made = [masks.make(host, seed) for seed in range(20)]
    for mask in made:
        lesion = mask > LIVER
        assert [int((mask == value).sum()) for value in (RIM, CORE)] == [34, 2]
        assert (host[lesion] == LIVER).all() and (mask[~lesion] == host[~lesion]).all()
        start = np.argwhere(lesion).min(0)
        np.testing.assert_array_equal(mask, organ(tuple(start)))
        assert masks.rejection(mask, host) is None
    assert len({mask.tobytes() for mask in made}) > 15
    np.testing.assert_array_equal(masks.make(host, 3), made[3])


def test_the_hosts_own_lesion_is_replaced_or_kept():
    host = organ((5, 6, 7))
    replaced = source().make(host, 1)
    assert int((replaced == CORE).sum()) == 2
    np.testing.assert_array_equal(np.where(replaced > LIVER, LIVER, replaced), organ())
    kept_options = MasksOptions(source="composed", lesions=["rim", "core"], rotation=0.0, scaling=0.0, replace=False)
    both = source(kept_options).make(host, 1)
    assert int((both == CORE).sum()) == 4 and (both[host > LIVER] == host[host > LIVER]).all()


def test_rotation_scaling_and_mirroring_change_the_size_as_they_should():
    x, y, z = np.indices((24,) * 3) - 11.5
    ball = (x**2 + y**2 + z**2 < 5**2) * np.uint8(1)
    training = TrainingMasks([ball])
    options = MasksOptions(source="composed", lesions=["l"], rotation=30.0, scaling=0.15, mirror=True)
    masks = ComposedMasks(options, (1,)).fitted(training)
    sizes = []
    for seed in range(12):
        turned = masks._turned(masks.lesions.crops[0], np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.normal(0, 30.0, 3)
        factor = 1 / np.exp(rng.normal(0, 0.15, 3)).prod()
        sizes.append(turned.astype(bool).sum() / ball.sum() / factor)
        assert ndimage.label(turned)[1] == 1
    np.testing.assert_allclose(sizes, 1, atol=0.08)


def test_without_other_classes_lesions_go_where_training_lesions_are():
    def alone(start):
        mask = np.zeros((12,) * 3, np.uint8)
        mask[start : start + 3, 4:7, 4:7] = 1
        return mask

    training = TrainingMasks([alone(2), alone(3), alone(4)])
    masks = ComposedMasks(STILL, (1,)).fitted(training)
    assert masks.lesions.tissue == ()
    starts = {
        int(np.argwhere(mask)[:, 0].min()) for mask in (masks.make(alone(2), seed) for seed in range(30)) if mask.any()
    }
    assert starts == {2, 3, 4}, "at least three quarters of its voxels lie in these lesions"


def test_a_host_without_room_is_rejected_and_unlabelled_hosts_get_lesions_where_they_occur():
    masks, full = source(), np.full((SIDE,) * 3, OTHER, np.uint8)
    assert masks.rejection(masks.make(full, 0), full).kind == "no room"
    blind = np.full((SIDE,) * 3, IGNORE, np.uint8)
    for mask in (masks.make(blind, seed) for seed in range(8)):
        lesion = np.isin(mask, (RIM, CORE))
        assert masks.lesions.places[lesion].sum() >= 0.75 * lesion.sum(), "where lesions occur"
        assert (mask[~lesion] == IGNORE).all()
    edge = np.where(organ((5, 6, 7)) == LIVER, IGNORE, organ((5, 6, 7)))
    assert IGNORE not in Lesions.of(TrainingMasks([edge]), (RIM, CORE)).tissue


def test_what_the_source_refuses():
    with pytest.raises(UserError, match="no training mask has a lesion"):
        source(training=TrainingMasks([organ()]))

    class Model:
        class card:
            experiment, schema = "toy", LabelSchema(((0, "background"), (1, "organ"), (2, "lesion")))

    for options, complaint in (
        ({}, "masks=composed: needs masks.lesions"),
        ({"lesions": ["tumour"]}, "masks.lesions: tumour is not a class of the masks; choose from organ, lesion"),
    ):
        with pytest.raises(UserError, match=complaint):
            load_masks(MasksOptions(source="composed", **options), Model)
    assert load_masks(MasksOptions(source="composed", lesions=["lesion"]), Model).classes == (2,)
    with pytest.raises(UserError, match="masks=composed: while a model trains"):
        load_masks(MasksOptions(source="composed", lesions=["lesion"]))
