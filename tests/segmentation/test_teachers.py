"""Pseudo-labels: kept, read back, weighted by shape; and the phases of a training on several kinds of volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_soft_labels import SCHEMA
from test_unet_backend import SIDE, toy

from medaug.data.augmentations import Strong
from medaug.data.preprocessing import Preprocessing
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.segmentation.atlases import AtlasSegmenter
from medaug.segmentation.batches import training_batches
from medaug.segmentation.protocol import Problem, PseudoLabels, TrainingSet
from medaug.segmentation.teachers import SoftLabels, Teachers

REAL = [toy(number, -0.5) for number in range(3)]
UNLABELLED = [replace(toy(number, number / 10), label=None) for number in range(3, 5)]


class Fixed:
    """A teacher that predicts the shape of the first labelled scan, and for the last scan almost everything."""

    def soft_label(self, image):
        last = np.array_equal(image, UNLABELLED[-1].image)
        label = np.ones_like(REAL[0].label) if last else np.asarray(REAL[0].label)
        return np.stack([label == value for value in range(3)]).astype(np.float32)


def test_teachers_work_once_and_unusual_shapes_count_less(tmp_path):
    taught = []

    def teach(training_set, seed):
        taught.append(seed)
        return Fixed()

    path = tmp_path / "deep" / "strong.npz"
    teachers = Teachers(teach, 3, True, SCHEMA, 7)
    labels = teachers.label(TrainingSet(REAL), UNLABELLED, path)
    again = teachers.label(TrainingSet(REAL), UNLABELLED, path)
    assert len(taught) == len(set(taught)) == 3, "the second time they are read from the file"
    for one, other in zip(labels.probabilities, again.probabilities, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.weights == labels.weights and labels.weights[0] == 1 > 0.5 > labels.weights[1]
    assert replace(teachers, plausibility=False).label(TrainingSet(REAL), UNLABELLED).weights == [1.0, 1.0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"strong.npz.*damaged pseudo-labels.*remove the file"):
        SoftLabels.load(path)
    with pytest.raises(UserError, match="pseudo.plausibility: 2 subjects have labels"):
        teachers.label(TrainingSet(REAL[:2]), UNLABELLED)


def test_teachers_of_a_second_round_train_on_the_labels_of_the_first():
    sets, seeds = [], []

    class Nth(Fixed):
        def __init__(self):
            self.share = 0.1 * len(sets)

        def soft_label(self, image):
            one = np.full(image.shape[1:], self.share, np.float32)
            return np.stack([one, 1 - one, 0 * one])

    def teach(training_set, seed):
        sets.append(training_set)
        seeds.append(seed)
        return Nth()

    labels = Teachers(teach, 2, False, SCHEMA, 7, rounds=2).label(TrainingSet(REAL), UNLABELLED)
    assert len(set(seeds)) == 4 and seeds[:2] == [named_seed(7, "teacher", number) for number in range(2)]
    assert all(one.pseudo is None for one in sets[:2]) and all(list(one.real) == REAL for one in sets)
    first, second = (np.rint(255 * np.mean(shares)) for shares in ([0.1, 0.2], [0.3, 0.4]))
    for taught in sets[2:]:
        assert taught.pseudo is not None and taught.pseudo.cases == UNLABELLED
        assert all(np.unique(one[0]).tolist() == [first] for one in taught.pseudo.probabilities)
    assert all(np.unique(one[0]).tolist() == [second] for one in labels.probabilities)


@pytest.mark.slow
def test_atlases_are_one_more_teacher_and_never_use_pseudo_labels():
    """Two teachers and the atlases' vote, which is computed apart, each count a third."""
    problem = Problem(("T1",), SCHEMA, Preprocessing((SIDE,) * 3, None))
    votes = AtlasSegmenter(problem)
    votes.fit(TrainingSet(REAL), 0, 0, "atlases")
    teachers = Teachers(lambda training_set, seed: Fixed(), 2, False, SCHEMA, 7, rounds=2, atlases=problem)
    found = teachers.label(TrainingSet(REAL, synthetic=REAL[:1]), UNLABELLED[:1]).probabilities[0]
    expected = (2 * Fixed().soft_label(UNLABELLED[0].image) + votes.soft_label(UNLABELLED[0].image)) / 3
    np.testing.assert_allclose(found, 255 * expected, atol=0.51)
    assert (found != np.rint(255 * Fixed().soft_label(UNLABELLED[0].image))).any()


def test_synthetic_volumes_end_before_pseudo_labels_and_those_before_the_last_steps():
    shares = np.zeros((3, SIDE, SIDE, SIDE), np.uint8)
    shares[0] = 255
    pseudo = PseudoLabels(UNLABELLED, [shares] * 2, Strong(), share=0.5, finish=0.2, weights=[0.25, 0.25])
    synthetic = [replace(case, image=np.full_like(case.image, 0.9)) for case in REAL]
    chosen = TrainingSet(REAL, synthetic, 0.5, None, synthetic_finish=0.4)
    for kinds, with_pseudo in ((chosen, 0), (replace(chosen, pseudo=pseudo), 8)):
        batches = training_batches(kinds, 4, 3, 10, 0)
        for step in range(10):
            batch = batches[step]
            assert len(batch["image"]) == 4
            assert int((batch["image"][:, 0, 0, 0, 0] > 0.85).sum()) == (0 if step >= 6 else 1 if with_pseudo else 2)
            assert ("soft" in batch) == (step < with_pseudo)
            if "soft" in batch:
                assert batch["weight"][-2:].allclose(torch.tensor(0.25)), "confidence 1, times the weight of the scan"
    alone = training_batches(TrainingSet((), synthetic, 0.5, None, synthetic_finish=0.4), 4, 3, 10, 0)
    assert (alone[9]["image"] > 0.85).all(), "without real scans there is nothing else"
