"""A task other than pairs as a user runs it: train, refuse to mix two tasks, predict."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow
DEMO = ("experiment=demo", "preset=smoke")


def test_a_segmentation_model_is_trained_applied_and_kept_apart_from_the_model_of_pairs(stage, tmp_path):
    done = stage("train", *DEMO, "task=segmentation")
    assert done.returncode == 0, done.stderr
    other = stage("train", *DEMO)
    assert other.returncode == 2 and 'task.target: "label" -> "image"' in other.stderr and "runs=DIR" in other.stderr
    refused = stage("generate", *DEMO)
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].endswith("apply it to scans with medaug.predict")
    done = stage("predict", *DEMO, "split=test", "num_samples=2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "demo" / "predictions" / "test"
    names = {path.name for path in folder.glob("*.nii.gz")}
    assert len(names) == 6 and len({name.split("_label")[0].split("_unc")[0] for name in names}) == 3
    for path in folder.glob("*_label.nii.gz"):
        assert set(np.unique(nib.load(path).get_fdata())) <= {0, 1, 2, 4}
    summary = json.loads((folder / "metrics.json").read_text())
    assert {row["metric"] for row in summary} >= {"dice", "hd95"} and all(row["n"] == 3 for row in summary)
    assert json.loads((folder / "finished.json").read_text())["scans"] == 3
