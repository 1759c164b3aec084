"""The denoising strip, checked by reading back its files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medaug.cohort.schema import IGNORE
from medaug.pictures.figures import busiest_slice
from medaug.pictures.strip import denoising_strip, evenly


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (9, 1, [0]), (1, 3, [0]), (20, 2, [0, 19])],
)
def test_frames_are_spread_evenly_from_first_to_last(count, wanted, expected):
    assert evenly(count, wanted) == expected


def test_the_strip_shows_every_frame_front_up_and_right_on_the_left(tmp_path):
    frames = []
    for i, time in enumerate((1.0, 0.5, 0.0)):
        volume = np.full((20, 10, 4), -1.0, np.float32)
        volume[15:, 8:, 2] = i / 2  # to the patient's right, in front
        volume[..., 3] = 1  # another slice
        frames.append((time, volume))
    denoising_strip(frames, 2, tmp_path / "strip")
    picture = np.asarray(Image.open(tmp_path / "strip.png"))
    width = picture.shape[1] // 3
    slice_height = 10 * 8  # 20 voxels are brought to 160 pixels
    assert picture.shape == (slice_height + 16, 3 * width)
    for i in range(3):
        panel = picture[16:, i * width + 1 : (i + 1) * width - 1]
        assert (panel[: 2 * 8, : 5 * 8] == round((i / 2 + 1) * 127.5)).all()
        assert (panel[2 * 8 :] == 0).all() and (panel[:, 5 * 8 :] == 0).all()
    with Image.open(tmp_path / "strip.gif") as film:
        assert film.n_frames == 3
        film.seek(2)
        assert film.info["duration"] == 2000
        last = np.asarray(film.convert("L"))
    np.testing.assert_array_equal(last, picture[:, 2 * width :])


def test_the_busiest_slice_has_most_foreground_and_ignored_voxels_are_none():
    label = np.zeros((4, 4, 5), np.uint8)
    label[1, 1:3, 3] = 2
    label[..., 1] = IGNORE
    assert busiest_slice(label) == 3
