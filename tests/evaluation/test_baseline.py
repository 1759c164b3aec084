"""The trivial baseline against an exhaustive search and against cases known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.scores import MEAN_FOREGROUND, dice

SCHEMA = LabelSchema(((0, "background"), (1, "core"), (2, "rim")))
REGIONS = LabelSchema(((0, "background"), (1, "core"), (2, "rim")), regions=(("whole", (1, 2)), ("rim", (2,))))


def searched(labels, subjects, schema):
    """For each subject the masks that k or more of the others have, and the best k over all labels."""
    found = {}
    for name in schema.structures():
        masks = [schema.structure_masks(label)[name] for label in labels]
        means = []
        for k in range(len(set(subjects)) + 1):
            scores = []
            for mask, subject in zip(masks, subjects, strict=True):
                others = [
                    np.any([m for m, s in zip(masks, subjects, strict=True) if s == other], axis=0)
                    for other in sorted(set(subjects) - {subject})
                ]
                scores.append(dice(np.sum([*others, np.zeros_like(mask)], axis=0) >= k, mask))
            means.append(np.mean(scores))
        found[name] = max(means)
    return found | {MEAN_FOREGROUND: np.mean(list(found.values()))}


@pytest.mark.parametrize("schema", [SCHEMA, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("seed", range(4))
def test_baseline_is_the_best_of_all_candidates(schema, seed):
    rng = np.random.default_rng(seed)
    common = rng.random((5, 4, 3))
    labels = [
        np.where(rng.random(common.shape) < common**2, rng.integers(0, 3, common.shape), 0).astype(np.uint8)
        for _ in range(6)
    ]
    labels[0][0, 0] = IGNORE
    labels[1][:] = 0
    subjects = ["A", "A", "B", "C", "D", "D"]
    assert trivial_dice(labels, subjects, schema) == pytest.approx(searched(labels, subjects, schema))


def box(*corner):
    label = np.zeros((8, 8, 8), np.uint8)
    label[tuple(slice(c, c + 4) for c in corner)] = 1
    return label


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([box(2, 2, 2)] * 3, 1.0),  # always in the same place
        ([box(0, 0, 0), box(4, 4, 4), box(0, 4, 4)], 2 * 64 / (512 + 64)),  # never: everywhere is best
        ([box(0, 0, 0)], 2 * 64 / (512 + 64)),  # there is no other subject to learn the place from
        (
            [box(0, 0, 0), *[np.zeros((8, 8, 8), np.uint8)] * 3],
            0.75,
        ),  # rare: an empty mask is right in three of four cases
    ],
)
def test_known_cases(labels, expected):
    schema = LabelSchema(((0, "background"), (1, "lesion")))
    found = trivial_dice(labels, [str(i) for i in range(len(labels))], schema)
    assert found == pytest.approx({MEAN_FOREGROUND: expected, "lesion": expected})


def test_baseline_of_a_subject_does_not_use_its_own_scans():
    schema = LabelSchema(((0, "background"), (1, "lesion")))
    labels = [box(0, 0, 0), box(0, 0, 0), box(4, 4, 4), box(4, 4, 4)]
    assert trivial_dice(labels, ["A", "A", "B", "B"], schema)["lesion"] == pytest.approx(2 * 64 / (512 + 64))
    assert trivial_dice(labels, ["A", "B", "C", "D"], schema)["lesion"] > 0.6


def test_inconsistent_arguments_are_refused():
    for labels, subjects in (([], []), ([box(0, 0, 0)], ["A", "B"])):
        with pytest.raises(ValueError, match="one subject per label"):
            trivial_dice(labels, subjects, SCHEMA)
