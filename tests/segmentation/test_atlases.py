"""Atlases: registration finds known displacements, and votes are weighted by local resemblance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from medaug.cohort.manifest import Case
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.imaging.registration import register_affine
from medaug.options import SegmenterOptions
from medaug.segmentation import atlases
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem, SoftSegmenter, TrainingSet

SIDE = 24
IDENTITY = np.eye(3)
SCHEMA = LabelSchema(((0, "background"), (1, "dim"), (2, "bright")))
PROBLEM = Problem(("T1",), SCHEMA, Preprocessing((SIDE,) * 3, None))
GRID = np.indices((SIDE,) * 3).astype(float)


def scan(matrix: np.ndarray = IDENTITY, shift=(0, 0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Two ellipsoids side by side, seen through an affine map about the centre: image (X, Y, Z) and label."""
    centre = (SIDE - 1) / 2
    away = np.einsum("ij,j...->i...", matrix, GRID - centre) + np.reshape(shift, (3, 1, 1, 1))
    dim, bright = (
        np.sqrt((((away - np.reshape(c, (3, 1, 1, 1))) / np.reshape(r, (3, 1, 1, 1))) ** 2).sum(0))
        for c, r in (((-3, 0, 0), (3, 6, 4)), ((4, 0, 0), (3, 4, 5)))
    )
    label = np.where(dim < 1, 1, np.where(bright < 1, 2, 0)).astype(np.uint8)
    return gaussian_filter(np.array([-0.8, 0.1, 0.8])[label], 1).astype(np.float32), label


def case(index: int, image: np.ndarray, label: np.ndarray) -> ModelCase:
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    about = Case(f"c{index}", ("a.nii.gz",), "b.nii.gz", f"s{index}")
    return ModelCase(about, image[None].astype(np.float32), label, np.eye(4), np.dtype("f4"), placement)


def test_an_affine_map_is_found():
    matrix = np.array([[1.05, 0.08, 0], [-0.06, 0.97, 0], [0, 0.03, 1.02]])
    fixed, moving = scan()[0], scan(np.linalg.inv(matrix), np.linalg.inv(matrix) @ [-1.0, 0.5, 0])[0]
    u = register_affine(moving, fixed)
    centre = (SIDE - 1) / 2
    truth = np.einsum("ij,j...->i...", matrix, GRID - centre) + centre + np.reshape([1.0, -0.5, 0], (3, 1, 1, 1)) - GRID
    inside = scan()[1] > 0
    assert np.abs(truth[:, inside]).max() > 1.2
    assert np.abs(u - truth)[:, inside].max() < 0.3


@pytest.mark.slow
def test_a_deformed_atlas_gives_the_label_of_the_scan():
    bend = np.stack([1.5 * np.sin(GRID[1] / 5), 1.2 * np.cos(GRID[2] / 6), np.zeros_like(GRID[0])])
    image, label = scan()
    moved = [map_coordinates(a, GRID + bend, order=order, mode="nearest") for a, order in ((image, 1), (label, 0))]
    before = (moved[1] == label)[(label > 0) | (moved[1] > 0)].mean()
    segmenter = BACKENDS["atlas"].make(PROBLEM, SegmenterOptions())
    assert isinstance(segmenter, SoftSegmenter)
    segmenter.fit(TrainingSet([case(0, *moved)]), 1, 0, "toy")
    found = segmenter.soft_label(image[None]).argmax(0)
    assert before < 0.75 < 0.9 < (found == label)[(label > 0) | (found > 0)].mean()
    np.testing.assert_array_equal(segmenter.predict(case(1, image, label)), found)


def test_votes_are_powers_of_the_local_difference(monkeypatch):
    """Atlases on the scan's own grid: the shares have a closed form where the difference is constant."""
    monkeypatch.setattr(atlases, "warped_to", lambda image, atlas, label: (atlas, label))
    blank = np.zeros((SIDE,) * 3, np.float32)
    near, far, absent = (np.full(blank.shape, value, np.uint8) for value in (1, 2, IGNORE))
    members = [case(0, blank + 0.1, near), case(1, blank + 0.2, far), case(2, blank, absent)]
    segmenter = BACKENDS["atlas"].make(PROBLEM, SegmenterOptions())
    segmenter.fit(TrainingSet(members), 1, 0, "toy")
    shares = segmenter.soft_label(blank[None])
    one, two = (0.01 + 1e-3) ** -2, (0.04 + 1e-3) ** -2
    np.testing.assert_allclose(shares[:, 5, 5, 5], [0, one / (one + two), two / (one + two)], rtol=1e-5)
    segmenter.fit(TrainingSet(members[2:]), 1, 0, "toy")
    assert (segmenter.soft_label(blank[None])[0] == 1).all(), "no vote: background"


def test_only_human_labels_are_atlases():
    blank = case(0, *scan())
    segmenter = BACKENDS["atlas"].make(PROBLEM, SegmenterOptions())
    with pytest.raises(UserError, match="atlases are real scans with human labels"):
        segmenter.fit(TrainingSet([blank], [blank]), 1, 0, "toy")
