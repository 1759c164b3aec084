"""Arms whose effect is known beforehand, from training to verdict on a toy problem; self-training's ingredients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.comparison.arms import ARMS, Arm
from medaug.comparison.job import Job
from medaug.comparison.material import Material
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.errors import UserError
from medaug.evaluation.scores import dice
from medaug.options import SegmenterOptions
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem
from medaug.segmentation.teachers import Teachers

SCHEMA = LabelSchema(((0, "background"), (1, "box")))
SIDE = 12
SEEDS = (0, 1, 2)


def scan(number: int) -> ModelCase:
    """A box at a random place in noise, with a brightness that varies from scan to scan."""
    rng = np.random.default_rng(number)
    label = np.zeros((SIDE,) * 3, np.uint8)
    x, y, z = rng.integers(1, 6, 3)
    label[x : x + 5, y : y + 5, z : z + 5] = 1
    image = np.where(label, rng.uniform(0, 0.8), -0.6) + rng.normal(0, 0.25, label.shape)
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    case = Case(f"c{number}", ("a.nii.gz",), "b.nii.gz", f"s{number}")
    return ModelCase(case, image[None].clip(-1, 1).astype("f4"), label, np.eye(4), np.dtype("f4"), placement)


class Space:
    """No change of grid."""

    def invert_label(self, label, placement):
        return label


TRAIN = [scan(i) for i in range(8)]
TEST = [scan(100 + i) for i in range(8)]
SHUFFLED = [replace(case, label=TRAIN[(i + 3) % 8].label) for i, case in enumerate(TRAIN)]
OPTIONS = SegmenterOptions(channels=[4, 8], batch_size=4, learning_rate=1e-2, num_workers=0)
PROBLEM = Problem(("T1",), SCHEMA, Space())  # type: ignore[arg-type]


@pytest.mark.slow
def test_shuffled_masks_are_harm_and_more_real_scans_are_gain(tmp_path):
    arms = {
        "one scan": (Arm(baseline=None), Material(TRAIN[:1], (), 0.5, SCHEMA)),
        "more scans": (Arm(baseline="one scan"), Material(TRAIN, (), 0.5, SCHEMA)),
        "shuffled pairs": (Arm(baseline="more scans", synthetic=True), Material(TRAIN, SHUFFLED, 0.75, SCHEMA)),
    }
    values = {}
    for name, (arm, material) in arms.items():
        for seed in SEEDS:
            segmenter = BACKENDS["unet"].make(PROBLEM, OPTIONS)
            segmenter.fit(arm.training_set(material), 40, seed, name)
            for case in TEST:
                value = dice(segmenter.predict(case) == 1, np.asarray(case.label) == 1)
                values[Job(name, seed), case.case.name, "box", "dice"] = value
    scores = Scores(values, ("box",), tmp_path, "")
    subjects, floor = {case.case.name: case.case.subject for case in TEST}, {"mean foreground": 0.1, "box": 0.1}
    bench = Benchmark("toy", False, False, tuple(arms), SEEDS, 40, subjects, floor, 8, 8, 0, {}, scores)
    verdicts = bench.compare([(name, arm.baseline) for name, (arm, _) in arms.items() if arm.baseline]).headlines
    assert [one.verdict for one in verdicts] == ["gain", "harm"]


class Sure:
    """A teacher that gives every class the same probabilities in all voxels."""

    def __init__(self, seed):
        self.share = 1.0 if seed % 2 else 0.5

    def soft_label(self, image):
        return np.stack([np.full(image.shape[1:], s, np.float32) for s in (self.share, 1 - self.share)])


def test_self_training_labels_the_scans_without_labels_by_the_mean_of_its_teachers():
    taught = []

    def teach(training_set, seed):
        taught.append((training_set, len(taught)))
        return Sure(len(taught))

    unlabelled = [replace(case, label=None) for case in TRAIN[2:]]
    material = Material(TRAIN[:2], SHUFFLED, 0.5, SCHEMA, unlabelled, 7, teachers=Teachers(teach, 2, False, SCHEMA, 7))
    for name in ("self_training", "self_training+synthetic"):
        taught.clear()
        training_set = ARMS[name].training_set(material)
        assert len(taught) == 2 and all(len(one.synthetic) == 0 and one.pseudo is None for one, _ in taught)
        assert all(one.real == TRAIN[:2] for one, _ in taught), "teachers see human labels only"
        pseudo = training_set.pseudo
        assert pseudo is not None and pseudo.cases == unlabelled and training_set.real == TRAIN[:2]
        assert all(np.unique(shares[0]).tolist() == [191] for shares in pseudo.probabilities)  # (1 + 0.5) / 2
        assert len(training_set.synthetic) == (8 if "synthetic" in name else 0)
    with pytest.raises(UserError, match="every training scan has a label"):
        ARMS["self_training"].training_set(replace(material, unlabelled=()))
