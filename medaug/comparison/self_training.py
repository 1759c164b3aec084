"""Self-training: scans without labels get the labels that other segmenters, the teachers, predict.

Teachers are trained on the labelled scans alone. Their mean probabilities are the soft labels of the other training
scans, and their confidence is the weight of each voxel. The last steps of the segmenter that learns from them, the
student, use human labels only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medaug.comparison.material import Material
from medaug.data.augmentations import Strong, mirror_axes
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.segmentation.protocol import PseudoLabels, SoftSegmenter, TrainingSet

NUM_TEACHERS = 2


def with_pseudo_labels(training_set: TrainingSet, material: Material) -> TrainingSet:
    """A training set with pseudo-labels for the scans without labels.

    Args:
        training_set: what the student trains on besides pseudo-labels. The teachers train on its real scans.
        material: the material of the job.

    Raises:
        UserError: there are no training scans without labels, or the backend cannot train teachers.
    """
    if not material.unlabelled:
        raise UserError(
            "arm with self_training: every training scan has a label",
            "hide some with benchmark.labelled, as in benchmark.labelled=[8], or leave the arm out",
        )
    assert material.teach is not None
    for_teachers = replace(training_set, synthetic=())
    seeds = [named_seed(material.seed, "teacher", number) for number in range(NUM_TEACHERS)]
    teachers = [material.teach(for_teachers, seed) for seed in seeds]
    shares = [mean_probabilities(teachers, case) for case in material.unlabelled]
    augment = Strong(mirror_axes(material.schema))
    return replace(training_set, pseudo=PseudoLabels(material.unlabelled, shares, augment))


def mean_probabilities(teachers: list[SoftSegmenter], case: ModelCase) -> NDArray[np.uint8]:
    """The mean of the probabilities that the teachers predict for a case, (C, X, Y, Z), in units of 1/255."""
    mean = np.mean([teacher.soft_label(case.image) for teacher in teachers], axis=0)
    return np.rint(255 * mean).astype(np.uint8)
