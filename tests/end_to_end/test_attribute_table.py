"""Attributes from a table to synthetic pairs, through the real command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_bad_input import assert_refused

from medaug.cohort import Manifest
from medaug.imaging.nifti import write_volume


@pytest.mark.slow
def test_from_a_table_to_pairs_of_one_site(stage, tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:10, 4:10, 4:12] = 1
    rows = ["case,subject,site,age,sex"]
    for i in range(8):
        name, spacing = f"scan_{i}", np.diag([1, 1, 1 + i % 2, 1])
        image = (label * (90 - 20 * (i % 2)) + rng.normal(50, 9, label.shape)).astype("i2")
        write_volume(tmp_path / f"data/images/{name}.nii.gz", image, spacing)
        write_volume(tmp_path / f"data/labels/{name}.nii.gz", label, spacing)
        rows.append(f"{name},person {i},{'AB'[i % 2]},{40 + i if i else ''},f")
    (tmp_path / "people.csv").write_text("\n".join(rows))
    (tmp_path / "short.csv").write_text("\n".join(rows[:-1]))

    words = ("root=data", "images=images/*.nii.gz", "labels=labels/*.nii.gz", "classes=[background,box]", "workers=1")
    words += ("subjects=people.csv", "check=none")
    done = stage("ingest", *words, "attributes=short.csv", "out=cohort.json")
    assert_refused(done, "ingest", "cohort.json: not written; correct the 1 error(s)")
    assert "error: data: short.csv: case scan_7 is not in this file; add it" in done.stderr
    done = stage("ingest", *words, "attributes=people.csv", "out=cohort.json")
    assert done.returncode == 0, done.stderr
    assert "attribute site: A, B, known of 8 cases" in done.stderr
    assert "attribute age: numbers from 41 to 47, known of 7 cases" in done.stderr
    expected = {case.name: case.attributes for case in Manifest.load(tmp_path / "cohort.json").cases}
    assert expected["scan_0"] == {"site": "A", "sex": "f"} and expected["scan_3"] == {
        "site": "B",
        "age": 43.0,
        "sex": "f",
    }

    words = ("experiment=cohort", "preset=smoke")
    told_of = ("data.manifest=cohort.json", "data.attributes=[site,age,spacing]")
    done = stage("train", *words, *told_of, "trainer.max_steps=2", "data.resample=never")
    assert done.returncode == 0, done.stderr
    assert "attribute age counts as unknown in case scan_0: it has none" in done.stderr

    done = stage("generate", *words, "num=3", "attributes=[site:B]")
    assert done.returncode == 0, done.stderr
    for line in (tmp_path / "runs/cohort/synthetic/provenance.jsonl").read_text().splitlines():
        record = json.loads(line)
        number = int(record["host"][-1])
        age = {"age": 40.0 + number} if number else {}
        assert record["attributes"] == {"site": "B", "spacing": [1.0, 1.0, 1.0 + number % 2]} | age
    pairs = Manifest.load(tmp_path / "runs/cohort/synthetic/manifest.json")
    assert [case.attributes["site"] for case in pairs.cases] == ["B"] * 3
    assert all("spacing" not in case.attributes for case in pairs.cases)
