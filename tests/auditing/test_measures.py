"""Measures of known images; results come back from their files; a new measure needs an entry and a function."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from pages import Page, toy_benchmark

from medaug.auditing.measures import MEASURES, Material, Measure
from medaug.auditing.results import Audit, Group
from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.evaluation.statistics import bootstrap_mean
from medaug.options import AuditOptions
from medaug.reporting.report import write_report

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))
SIDE = 6


def case(name: str, subject: str, step: float = 0.0) -> ModelCase:
    """A ramp that rises by `step` per voxel along the first axis, with a lesion in one octant."""
    image = np.zeros((1, SIDE, SIDE, SIDE), np.float32)
    image[0] += np.arange(SIDE, dtype=np.float32)[:, None, None] * step
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[:3, :3, :3] = 1
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE,) * 3, (0.0,), (1.0,))
    return ModelCase(Case(name, (), None, subject), image, label, np.eye(4), np.dtype("f4"), placement)


def material(**changes) -> Material:
    val = [case("v0", "V", 0.1), case("v1", "W", 0.1)]
    synthetic = [case("p0", "A", 0.05), case("p1", "B", 0.02), case("p2", "B", 0.02)]
    return Material(SCHEMA, AuditOptions(), **({"val": val, "synthetic": synthetic} | changes))


def test_sharpness_is_the_mean_gradient_of_each_set():
    real, synthetic = MEASURES["sharpness"].function(material())
    assert (real.images, synthetic.images) == ("real_validation", "synthetic")
    assert real.interval.mean == pytest.approx(0.1 / 3)  # one axis of three
    assert [row[:2] for row in synthetic.rows] == [("p0", "A"), ("p1", "B"), ("p2", "B")]
    assert [row[2] for row in synthetic.rows] == pytest.approx([0.05 / 3, 0.02 / 3, 0.02 / 3])
    expected = bootstrap_mean(np.array([row[2] for row in synthetic.rows]), ["A", "B", "B"], 0)
    assert synthetic.interval == expected


def test_a_judge_that_copies_masks_scores_real_synthetic_and_shuffled_as_expected():
    """All masks are equal here, so shuffled masks score as well: this is what shuffling must reveal."""
    label = case("x", "X").label
    judge = SimpleNamespace(segment=lambda image: label)
    groups = {g.images: g.interval.mean for g in MEASURES["faithfulness"].function(material(judge=judge))}
    assert groups == {"real_validation": 1.0, "synthetic": 1.0, "shuffled": 1.0}
    judge = SimpleNamespace(segment=lambda image: 1 - label)
    groups = {g.images: g.interval.mean for g in MEASURES["faithfulness"].function(material(judge=judge))}
    assert set(groups.values()) == {0.0}


def test_a_measure_without_what_it_needs_is_left_out():
    needed = {name: measure.needs for name, measure in MEASURES.items()}
    assert [name for name, needs in needed.items() if material().has(needs)] == ["sharpness"]
    assert [n for n, needs in needed.items() if material(judge=object()).has(needs)] == ["faithfulness", "sharpness"]


def brightness(material: Material):
    for images, cases in (("real_validation", material.val), ("synthetic", material.synthetic)):
        yield Group.of_cases(images, cases, np.array([case.image.mean() for case in cases]), 0)
    yield Group.of_set("two_halves", 0.25, 2)


@pytest.mark.slow
def test_a_new_measure_is_one_entry_and_one_function(tmp_path, monkeypatch):
    entry = Measure("Brightness", "units", 2, None, "mean intensity", brightness)
    monkeypatch.setitem(MEASURES.own, "brightness", lambda: entry)
    inputs = material()
    results = {name: list(m.function(inputs)) for name, m in MEASURES.items() if inputs.has(m.needs)}
    Audit(False, results).save(tmp_path / "audit")
    with (tmp_path / "audit" / "measures.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "brightness"]
    assert [(row["images"], row["case"]) for row in rows] == [
        ("real_validation", "v0"),
        ("real_validation", "v1"),
        ("synthetic", "p0"),
        ("synthetic", "p1"),
        ("synthetic", "p2"),
    ]
    assert float(rows[2]["value"]) == pytest.approx(0.05 * 2.5)
    stored = json.loads((tmp_path / "audit" / "faithfulness.json").read_text())["measures"]["brightness"]
    assert stored["two_halves"] == {"mean": 0.25, "low": None, "high": None, "n": 2}
    write_report(toy_benchmark(tmp_path), [], tmp_path, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    shown = page.tables["measures-table"][1:]
    assert shown[2][:2] == ["Brightness", "real validation images"] and shown[3][0] == "synthetic images"
    assert shown[2][2].startswith("0.25 [") and shown[2][2].endswith("] units") and shown[2][3] == "2"
    assert shown[4] == ["two halves", "0.25 units", "2"]
    assert "mean intensity; synthetic images should have the value of real ones" in page.text


def test_an_audit_comes_back_from_its_files(tmp_path):
    inputs = material()
    results = {"sharpness": list(MEASURES["sharpness"].function(inputs))}
    audit = Audit(True, results, 0.1, 0.9, None, {"steps": 3, "seed": 0, "num_training_cases": 4})
    audit.save(tmp_path)
    again = Audit.load(tmp_path)
    assert (again.smoke, again.floor, again.ratio, again.ratio_low, again.judge) == (True, 0.1, 0.9, None, audit.judge)
    for images in ("real_validation", "synthetic"):
        one, other = audit.interval("sharpness", images), again.interval("sharpness", images)
        assert (one.mean, one.low, one.high, one.n) == (other.mean, other.low, other.high, other.n)
    assert again.interval("sharpness", "shuffled") is None


def test_an_audit_of_an_earlier_version_is_read(tmp_path):
    interval = {"mean": 0.8, "low": None, "high": None, "n": 2}
    old = {
        "synthetic": interval,
        "guidance": [{"guidance_scale": 0.5, **interval}, {"guidance_scale": 3.0, **interval, "mean": 0.9}],
        "sharpness": {"real": 0.158, "synthetic": 0.123},
    }
    (tmp_path / "faithfulness.json").write_text(json.dumps(old))
    audit = Audit.load(tmp_path)
    assert audit.interval("faithfulness", "synthetic").mean == 0.8
    assert audit.interval("faithfulness", "shuffled") is None
    assert {scale: interval.mean for scale, interval in audit.guidance.items()} == {0.5: 0.8, 3.0: 0.9}
    assert audit.interval("sharpness", "real_validation").mean == 0.158
