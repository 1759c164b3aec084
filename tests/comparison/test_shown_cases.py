"""The scans that are shown are those with the largest gain, the middle one and that with the largest loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from pages import toy_benchmark
from small_cohort import SCHEMA, write_case

from medaug.cohort.manifest import Manifest
from medaug.comparison.job import Job
from medaug.comparison.planes import load_planes, save_planes
from medaug.comparison.scores import Scores
from medaug.comparison.shown_cases import chosen_cases, show_cases


@pytest.fixture
def bench(tmp_path):
    """Dice of `good` minus that of `bad`: -0.3 on c0 up to +0.3 on c6; HD95 the other way round."""
    values = {}
    for i in range(7):
        for arm, change in (("bad", 0.0), ("good", 0.1 * (i - 3))):
            values[Job(arm, 0), f"c{i}", "lesion", "dice"] = 0.5 + change
            values[Job(arm, 0), f"c{i}", "lesion", "hd95"] = 5.0 - change
    toy = toy_benchmark(tmp_path)
    return replace(toy, scores=Scores(values, ("lesion",), tmp_path / "s.csv", "")).compare([("good", "bad")])


def test_gain_middle_and_loss_are_chosen_whatever_the_direction_of_the_metric(bench):
    chosen = chosen_cases(bench)
    assert [(words, name) for words, name, *_ in chosen] == [
        ("best for the arm", "c6"),
        ("middle", "c3"),
        ("worst for the arm", "c0"),
    ]
    assert [round(score, 3) for *_, baseline, arm in chosen for score in (baseline, arm)] == [
        0.5,
        0.8,
        0.5,
        0.5,
        0.5,
        0.2,
    ]
    alone = replace(bench, subjects={"c2": "s2"}).compare([("good", "bad")])
    assert [name for _, name, *_ in chosen_cases(alone)] == ["c2"]


@pytest.mark.slow
def test_the_picture_needs_the_slices_of_both_arms(bench, tmp_path):
    cases = tuple(write_case(tmp_path, f"c{i}", f"s{i}", "test", i) for i in range(7))
    cohort = Manifest("toy", "", ("T1",), SCHEMA, cases, str(tmp_path))
    folder = tmp_path / "benchmark"
    assert (
        show_cases(bench, cohort, folder) is None and show_cases(replace(bench, comparisons=()), cohort, folder) is None
    )
    planes = {f"c{i}": np.eye(8, dtype=np.uint8) for i in range(7)}
    for arm in ("bad", "good"):
        path = Job(arm, 0).scores(folder).with_name("planes.npz")
        save_planes(path, planes)
        assert all(np.array_equal(plane, np.eye(8)) for plane in load_planes(path).values())
    path = show_cases(bench, cohort, folder)
    assert path is not None and imread(path).std() > 0.1
    path.with_name("planes.npz").write_bytes(b"damaged")
    assert load_planes(path.with_name("planes.npz")) == {}
