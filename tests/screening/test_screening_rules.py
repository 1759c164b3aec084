"""Planted faults against rules that were fitted on sound scans: copies, wrong masks, torn and empty volumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medaug.cohort.manifest import Case
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.errors import UserError
from medaug.evaluation.scores import structure_dice
from medaug.options import ScreenOptions, SegmenterOptions
from medaug.screening.faithfulness import threshold
from medaug.screening.intensity import intensities, left_out_deviations
from medaug.screening.near_copies import SHIFT
from medaug.screening.rules import Check, Reference, Sample, passed, verdicts_to_mapping
from medaug.screening.screen import Screen, needs_segmenter
from medaug.screening.table import SCREENING_RULES
from medaug.segmentation.protocol import TrainingSet
from medaug.segmentation.unet import segment, train_segmenter

SIDE, SHAPE = 24, (24, 24, 20)
SCHEMA = LabelSchema(((0, "background"), (1, "ball"), (2, "core")))
ATLAS = gaussian_filter(np.random.default_rng(99).normal(size=SHAPE), 4)
ALL = [name for name in SCREENING_RULES if name != "duplicates"]


def anatomy(seed: int) -> np.ndarray:
    rng = np.random.default_rng(1000 + seed)
    centre = np.array(SHAPE) / 2 + rng.uniform(-2, 2, 3)
    radii = rng.uniform(4, 7, 3)
    distance = np.sqrt((((np.indices(SHAPE).T - centre) / radii) ** 2).sum(-1)).T
    return np.select([distance < 0.5, distance < 1], [2, 1], 0).astype(np.uint8)


def paint(label: np.ndarray, seed: int) -> np.ndarray:
    """A scan (1, X, Y, Z): a shared pattern, its own texture, and a brighter ball with a darker core."""
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.2)
    image = 0.1 * ATLAS / ATLAS.std() + 0.15 * texture / texture.std() + np.array([-0.4, 0.3, 0.0])[label]
    return np.clip(image, -1, 1)[None].astype(np.float32)


def person(seed: int) -> ModelCase:
    label = anatomy(seed)
    place = Placement(SHAPE, ((0, 1), (1, 1), (2, 1)), (SIDE, SIDE, 18), (0.0,), (1.0,))
    case = Case(f"case_{seed}", ("x.nii.gz",), "y.nii.gz", f"subject_{seed}", "train")
    image = paint(label, seed)
    image[..., :1] = image[..., 19:] = -1  # the scan is 18 slices thick
    label[..., :1] = label[..., 19:] = 0
    return ModelCase(case, image, label, np.eye(4), np.dtype("i2"), place)


TRAIN, VAL, NEW = ([person(seed) for seed in seeds] for seeds in (range(12), range(100, 108), range(200, 210)))


@pytest.fixture(scope="module")
def reference() -> Reference:
    options = SegmenterOptions(channels=[8, 16], batch_size=2, num_workers=0, learning_rate=1e-2)
    net = train_segmenter(TrainingSet(TRAIN), 3, options, steps=40, seed=5, name="screening")
    return Reference(SCHEMA, TRAIN, VAL, net)


@pytest.fixture(scope="module")
def screen(reference: Reference) -> Screen:
    return Screen.fit(reference, ScreenOptions(rules=[*SCREENING_RULES]))


def failed(screen: Screen, sample: Sample) -> set[str]:
    return {rule for rule, checks in screen.judge(sample).items() if not all(check.passed for check in checks)}


def pair(image: np.ndarray, mask: np.ndarray, host: ModelCase = TRAIN[0]) -> Sample:
    return Sample.of_pair(host, mask, image.astype(np.float32))


@pytest.mark.slow
def test_thresholds_are_numpys_percentiles_of_real_scans(reference, screen):
    verdicts = screen.judge(Sample.of_case(NEW[0]))
    dice = [structure_dice(segment(reference.net, case.image), case.label, SCHEMA) for case in VAL]
    for name in ("ball", "core"):
        [check] = [check for check in verdicts["faithfulness"] if check.name == f"Dice of {name}"]
        assert check.threshold == pytest.approx(np.percentile([scan[name] for scan in dice], 10, method="weibull"))
    rows = np.array([intensities(Sample.of_case(case), SCHEMA)["core"] for case in TRAIN])
    by_hand = []
    for i, row in enumerate(rows):
        others = np.delete(rows, i, axis=0)
        by_hand.append(np.max(np.abs(row - others.mean(0)) / others.std(0, ddof=1)))
    np.testing.assert_allclose(left_out_deviations(rows), by_hand)
    [check] = [check for check in verdicts["intensity"] if check.name == "deviation in core"]
    assert check.threshold == pytest.approx(np.percentile(by_hand, 99))
    alike, ratio = verdicts["near_copies"]
    held_out = [screen.judge(Sample.of_case(case))["near_copies"] for case in VAL]
    assert alike.threshold == pytest.approx(np.percentile([one.figure for one, _ in held_out], 95))
    assert ratio.threshold == pytest.approx(np.percentile([two.figure for _, two in held_out], 5))


def test_the_share_of_new_scans_below_the_threshold_is_the_one_asked_for():
    """Of uniform figures, the threshold is the share below it; the usual percentile of 22 scans has 13.5% below it."""
    rng = np.random.default_rng(0)
    for scans in (12, 22, 60):
        draws = rng.uniform(size=(2000, scans))
        assert np.mean([threshold(draw, 0.1) for draw in draws]) == pytest.approx(0.1, abs=0.005)
    assert np.quantile(rng.uniform(size=(2000, 22)), 0.1, axis=1).mean() == pytest.approx(0.135, abs=0.005)
    assert threshold([0.3, 0.2, 0.9], 0.1) == 0.2


@pytest.mark.slow
def test_each_rule_passes_most_new_scans(screen):
    """With 12 training and 8 validation scans the percentiles are rough."""
    rejected = Counter(rule for case in NEW for rule in failed(screen, Sample.of_case(case)))
    assert rejected["integrity"] == 0 and max(rejected.values()) <= 6


COPIES = {
    "noised": lambda v, rng: v + rng.normal(0, 0.01, v.shape) * np.ptp(v),
    "flipped": lambda v, rng: v[:, ::-1],
    "flipped twice": lambda v, rng: v[:, :, ::-1, ::-1],
    "shifted": lambda v, rng: np.roll(v, rng.choice([-SHIFT, SHIFT], 3), (1, 2, 3)),
    "gamma": lambda v, rng: 2 * ((v + 1) / 2) ** 1.2 - 1,
    "all of it": lambda v, rng: (
        2 * ((np.roll(v[:, ::-1], (2, -2, 0), (1, 2, 3)) + 1) / 2) ** 1.2 - 1 + rng.normal(0, 0.01, v.shape) * np.ptp(v)
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_planted_copy_is_caught_every_time(screen, name):
    rng = np.random.default_rng(7)
    for case in TRAIN[::4]:
        copy = np.clip(COPIES[name](case.image, rng), -1, 1)
        checks = screen.judges["near_copies"](pair(copy, case.label))
        assert not all(check.passed for check in checks), case.case.name
        assert case.case.name in {check.about for check in checks if not check.passed}


def test_a_mask_of_another_subject_fails_faithfulness(screen):
    for case, other in zip(NEW, NEW[1:], strict=False):
        wrong = np.roll(other.label, (6, -6, 0), (0, 1, 2))
        assert not all(check.passed for check in screen.judges["faithfulness"](pair(case.image, wrong)))


def test_brightened_and_smoothed_structures_fail_intensity(screen):
    image, mask = NEW[1].image, NEW[1].label
    for changed in (image + 0.4 * (mask == 2), gaussian_filter(image, (0, 3, 3, 3)), 0.3 * image):
        assert not all(check.passed for check in screen.judges["intensity"](pair(changed, mask)))


def torn(v):
    return np.concatenate([v[..., :10], np.roll(v, (9, 9), (1, 2))[..., 10:]], axis=-1)


def without_a_slice(v):
    return np.concatenate([v[..., :9], np.full_like(v[..., :1], -1), v[..., 10:]], axis=-1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (np.zeros_like, "standard deviation"),
        (lambda v: np.full_like(v, -1), "standard deviation"),
        (lambda v: np.where(v > 0, 1, v), "share of voxels at the high end"),
        (lambda v: np.where(v < -0.4, -1, v), "share of voxels at the low end"),
        (torn, "largest step between slices"),
        (without_a_slice, "largest step between slices"),
        (without_a_slice, "constant slices"),
    ],
)
def test_empty_clipped_and_torn_volumes_fail_integrity(screen, change, name):
    checks = screen.judges["integrity"](pair(change(NEW[2].image), NEW[2].label))
    assert name in {check.name for check in checks if not check.passed}


def test_nan_and_infinity_are_rejected_whatever_the_rules(screen):
    image = np.array(NEW[0].image)
    image[0, 5, 5, 5] = np.nan
    for one in (screen, replace(screen, judges={})):
        verdicts = one.judge(pair(image, NEW[0].label))
        assert not passed(verdicts) and list(verdicts) == ["integrity"]
    unknown = Check("x", float("nan"), 1.0, at_least=False)
    assert unknown.to_mapping() == {"figure": None, "at_most": 1.0, "passed": False}


def test_voxels_outside_the_host_are_not_judged(screen):
    image = np.array(NEW[3].image)
    image[..., 19:] = 1.0
    assert screen.judge(pair(image, NEW[3].label)) == screen.judge(Sample.of_case(NEW[3]))


def test_duplicates_are_found_in_order_and_only_among_kept_pairs(screen):
    rng = np.random.default_rng(0)
    images = [NEW[0].image, NEW[1].image, NEW[0].image + rng.normal(0, 0.02, NEW[0].image.shape), NEW[2].image]
    samples = [pair(image, NEW[0].label) for image in (*images, images[2])]
    for _ in range(2):  # a second pass remembers nothing of the first
        assert [passed(verdicts) for verdicts in screen.judge_in_order(samples)] == [True, True, False, True, False]
    assert [passed(v) for v in screen.judge_in_order(samples[:3])] == [True, True, False]  # later pairs change nothing


def test_lesions_are_found_or_not(reference):
    judge = SCREENING_RULES["faithfulness"].fit(replace(reference, lesions=["ball"]), ScreenOptions())
    mask = np.array(NEW[5].label)
    found = {check.name: check for check in judge(pair(NEW[5].image, mask))}["lesions of ball found"]
    assert found.figure == found.threshold == 1 and found.passed
    mask[1:3, 1:3, 2:4] = 1  # where the image shows nothing
    missed = {check.name: check for check in judge(pair(NEW[5].image, mask))}["lesions of ball found"]
    assert missed.figure == 0.5 and not missed.passed


def test_verdicts_as_json_values():
    verdicts = {"a": [Check("x", 0.5, 0.4, True), Check("y", 3.0, 2.0, False, "case_1")]}
    assert not passed(verdicts) and passed({"a": verdicts["a"][:1]}) and passed({})
    assert verdicts_to_mapping(verdicts) == {
        "a": {
            "x": {"figure": 0.5, "at_least": 0.4, "passed": True},
            "y": {"figure": 3.0, "at_most": 2.0, "passed": False, "about": "case_1"},
        }
    }
    assert needs_segmenter(["integrity", "near_copies"]) and not needs_segmenter(["integrity", "duplicates"])


@pytest.mark.parametrize(
    ("rule", "change", "said"),
    [
        ("faithfulness", {"val": []}, "needs labelled validation scans"),
        ("intensity", {"train": TRAIN[:3]}, "needs 4 labelled training scans, and there are 3"),
        ("integrity", {"train": []}, "integrity needs labelled training scans"),
        ("near_copies", {"val": []}, "near_copies needs training scans of two subjects and a validation scan"),
        ("duplicates", {"train": TRAIN[:1]}, "duplicates needs training scans of two subjects"),
    ],
)
def test_too_few_scans_give_one_line_that_names_the_rule(reference, rule, change, said):
    with pytest.raises(UserError, match=said) as error:
        SCREENING_RULES[rule].fit(replace(reference, **change), ScreenOptions())
    assert "\n" not in str(error.value)


def test_ignored_voxels_count_in_no_structure(screen):
    mask = np.array(NEW[4].label)
    mask[:6] = IGNORE
    assert not failed(screen, pair(NEW[4].image, mask)) & {"faithfulness", "integrity"}
