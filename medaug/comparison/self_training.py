"""Self-training: scans without labels get the labels that other segmenters, the teachers, predict.

Teachers are trained on the labelled scans alone. Their mean probabilities are soft labels of the other training scans,
weighted voxel by voxel by their confidence, and scan by scan by the plausibility of the shape if that is wanted; the
student's last steps use human labels only.
"""

from __future__ import annotations

from dataclasses import replace

from medaug.comparison.material import Material
from medaug.data.augmentations import Strong, mirror_axes
from medaug.errors import UserError
from medaug.segmentation.protocol import PseudoLabels, TrainingSet


def with_pseudo_labels(training_set: TrainingSet, material: Material, augment: str | None) -> TrainingSet:
    """A training set with pseudo-labels for the scans without labels.

    Arms of one job whose teachers train on the same share them: the labels are kept in `material.pseudo_folder`.

    Args:
        training_set: what the student trains on beside them. The teachers train on its real scans.
        material: what there is.
        augment: name of the augmentation, which the teachers use, too.

    Raises:
        UserError: there are no training scans without labels, or the backend cannot train teachers.
    """
    if not material.unlabelled:
        raise UserError(
            "arm with self_training: every training scan has a label",
            "hide some with benchmark.labelled, as in benchmark.labelled=[8], or leave the arm out",
        )
    assert material.teachers is not None
    folder = material.pseudo_folder
    labels = material.teachers.label(
        replace(training_set, synthetic=()),
        material.unlabelled,
        None if folder is None else folder / f"{augment}.npz",
    )
    pseudo = PseudoLabels(
        material.unlabelled,
        labels.probabilities,
        Strong(mirror_axes(material.schema)),
        material.pseudo_share,
        material.pseudo_finish,
        labels.weights,
        material.pseudo_cutmix,
    )
    return replace(training_set, pseudo=pseudo)
