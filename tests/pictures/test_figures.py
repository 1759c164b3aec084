"""Figures, checked by reading back their pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from medaug.cohort.schema import IGNORE
from medaug.evaluation.statistics import Interval
from medaug.pictures import figures


def _square(shape=(16, 12, 6)):
    """A dark image with a bright box to the patient's right front, in slice 4."""
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    image[11:14, 8:10, 4], label[11:14, 8:10, 4] = 1, 2
    label[2, 2, 0] = 1
    return image, label


def _near(picture, colour):
    from matplotlib.colors import to_rgb

    return np.abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.1


def test_the_slice_with_most_foreground_is_shown_with_right_on_the_left_and_front_up(tmp_path):
    image, label = _square()
    path = tmp_path / "one.png"
    figures.save_figure(figures.comparison_picture([("", label, image, image)], window=(0, 1)), path)
    picture = imread(path)
    box = np.argwhere(_near(picture, figures.class_colour(2)))
    panel = _near(picture[:, : picture.shape[1] // 3], "black")
    left, *_, right = np.flatnonzero(panel.mean(axis=0) > 0.5)  # titles are black too, but thinner
    top, *_, bottom = np.flatnonzero(panel.mean(axis=1) > 0.5)
    x = (right - box[:, 1].mean()) / (right - left)  # from the patient's left (0) to right (1)
    y = (bottom - box[:, 0].mean()) / (bottom - top)
    assert x == pytest.approx(12.5 / 16, abs=0.03)
    assert y == pytest.approx(9 / 12, abs=0.04)
    assert not _near(picture, figures.class_colour(1)).any()  # its only voxel lies in another slice


@pytest.mark.parametrize("depth", [1.0, 2.0])
def test_spacing_sets_the_aspect(tmp_path, depth):
    image, label = _square((16, 16, 6))
    figure = figures.comparison_picture([("", label, image, image)], spacing=(1, depth, 1), window=(0, 1))
    figures.save_figure(figure, tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    box = np.argwhere(_near(picture, figures.class_colour(2)))
    height, width = np.ptp(box, axis=0) + 1
    assert height / width == pytest.approx(depth * 2 / 3, rel=0.1)


def test_the_outline_lies_on_the_second_picture_only_and_the_legend_names_every_class(tmp_path):
    image, label = _square()
    sheet = figures.contact_sheet([("case", image, label)], "title", window=(0, 1))
    figures.save_figure(sheet, tmp_path / "bare.png")
    bare = _near(imread(tmp_path / "bare.png"), figures.class_colour(2))
    half = bare.shape[1] // 2
    assert bare[:, half:].any() and not bare[:, :half].any()
    sheet = figures.contact_sheet([("case", image, label)], "title", ("a", "b"), window=(0, 1))
    figures.save_figure(sheet, tmp_path / "named.png")
    assert _near(imread(tmp_path / "named.png"), figures.class_colour(1)).any()


@pytest.mark.slow
def test_a_sheet_stops_at_its_largest_number_of_pairs(tmp_path):
    rows = [("case", *_square((8, 8, 2 + 3)))] * figures.MAX_PAIRS
    figures.save_figure(figures.contact_sheet(rows, "title"), tmp_path / "full.png")
    figures.save_figure(figures.contact_sheet(rows + rows, "title"), tmp_path / "more.png")
    assert (imread(tmp_path / "full.png") == imread(tmp_path / "more.png")).all()


@pytest.mark.slow
def test_guidance_columns_show_their_own_images(tmp_path):
    _, label = _square((12, 12, 6))
    images = [np.full((12, 12, 6), value, np.float32) for value in (0.25, 0.5, 0.75)]
    path = tmp_path / "guidance.png"
    figure = figures.guidance_picture([("seed 0", np.zeros_like(label), images)], (0, 1, 3), window=(0, 1))
    figures.save_figure(figure, path)
    picture = imread(path)[..., 0]
    middle = picture[int(picture.shape[0] * 0.6)]
    places = [np.flatnonzero(np.abs(middle - value) < 0.01) for value in (0.25, 0.5, 0.75)]
    assert all(len(place) > 100 for place in places)
    assert places[0].max() < places[1].min() and places[1].max() < places[2].min()


@pytest.mark.slow
def test_plots_draw_one_series_per_arm_without_interval_too(tmp_path):
    nan = float("nan")
    arms = {
        "real": (np.array([0.5, 0.6]), Interval(0.55, 0.5, 0.6, 2, 2)),
        "b": (np.ones(1), Interval(1, nan, nan, 1, 1)),
    }
    figures.save_figure(figures.dice_plot(arms), tmp_path / "dice.png")
    points = {0.0: arms["real"][1], 3.0: arms["b"][1]}
    figures.save_figure(figures.guidance_plot(points), tmp_path / "guidance.png")
    for name in ("dice.png", "guidance.png"):
        assert _near(imread(tmp_path / name), figures.ACCENT).sum() > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dice.png", "guidance.png"]


def test_colours_of_many_classes_differ():
    assert len({figures.class_colour(i) for i in range(1, 30)}) == 29


@pytest.mark.slow
def test_matplotlib_is_not_imported_with_the_module():
    code = "import sys, medaug.pictures.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_ignored_voxels_are_grey_without_outline_and_do_not_affect_the_slice(tmp_path):
    image, label = _square()
    label[..., 1] = IGNORE  # far more than the foreground, in a slice without any
    label[:6, :, 4] = IGNORE
    figures.save_figure(figures.comparison_picture([("", label, image, image)], window=(0, 1)), tmp_path / "one.png")
    picture = imread(tmp_path / "one.png")
    assert _near(picture, figures.class_colour(2)).any()
    grey = np.argwhere(_near(picture, figures.NEUTRAL)[:, : picture.shape[1] // 3])
    box = np.argwhere(_near(picture, figures.class_colour(2)))
    assert len(grey) / len(box) == pytest.approx(6 * 12 / (3 * 2), rel=0.1)
    assert grey[:, 1].min() > box[:, 1].max()  # the patient's left is on the right
    plain = np.where(label == IGNORE, 0, label)
    for name, mask in (("blind", label), ("plain", plain)):
        figures.save_figure(
            figures.contact_sheet([("case", image, mask)], "title", window=(0, 1)), tmp_path / f"{name}.png"
        )
    assert np.array_equal(imread(tmp_path / "blind.png"), imread(tmp_path / "plain.png"))
