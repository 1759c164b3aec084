"""nnU-Net as a backend: its scores are ours, its shares are the arm's, and its failures are said in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.evaluation.scores import segmentation_scores
from medaug.imaging.nifti import write_volume
from medaug.options import SegmenterOptions
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem, PseudoLabels, TrainingSet

SPACE = Preprocessing((16, 16, 16), None, (0.0, 100.0))
SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))
PROBLEM = Problem(("T1",), SCHEMA, SPACE)
SUMMARY = """
import json, sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
folder = sys.argv[1]
if __name__ == "__main__":
    compute_metrics_on_folder(folder + "/truth", folder + "/found", folder + "/summary.json", SimpleITKIO(), ".nii.gz",
                              [1], None, 1)
    cases = json.load(open(folder + "/summary.json"))["metric_per_case"]
    print(json.dumps({case["prediction_file"].split("/")[-1]: case["metrics"]["1"]["Dice"] for case in cases}))
"""


def case(number: int, side: int = 16) -> ModelCase:
    """A bright box in noise, on a grid of its own size."""
    rng = np.random.default_rng(number)
    label = np.zeros((side, 16, 16), np.uint8)
    low = rng.integers(2, 8, 3)
    label[tuple(slice(a, a + n) for a, n in zip(low, (6, 5, 4), strict=True))] = 1
    host = (label * 60.0 + 20 + rng.normal(0, 5, label.shape)).astype(np.float32)
    image, placement = SPACE.apply_image(host[None], np.eye(4))
    placed = SPACE.apply_label(label, placement)
    return ModelCase(Case(f"c{number}", (), None, f"s{number}"), image, placed, np.eye(4), np.dtype("f4"), placement)


def unchanged(image, label, seed):
    return image, label


def segmenter(**changes):
    return BACKENDS["nnunet"].make(PROBLEM, SegmenterOptions(**{"batch_size": 2, "num_workers": 0} | changes))


def test_what_nnunet_cannot_do_is_refused_before_it_starts():
    pseudo = PseudoLabels([], [], unchanged)
    for changes in ({"augment": None}, {"pseudo": pseudo}, {"synthetic_finish": 0.2}):
        training_set = replace(TrainingSet([case(0)], augment=unchanged), **changes)
        with pytest.raises(
            UserError, match="real, seed 0: backend nnunet always augments by itself.*leave the arm out"
        ):
            segmenter(nnunet="/absent").fit(training_set, 1, 0, "real, seed 0")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "python: nnU-Net's Python cannot be started.*No such file.*install nnunetv2"),
        ("exit 3", "python: backend=nnunet: this Python has no nnU-Net; install nnunetv2"),
        ("echo no memory >&2; exit 7", r"the job: nnU-Net failed \(exit status 7\) \(no memory\)"),
        ("kill -9 $$", r"nnU-Net failed \(exit status -9\) \(no message\)"),
    ],
)
def test_an_absent_or_failing_nnunet_is_said_in_one_line(tmp_path, script, message):
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    with pytest.raises(UserError, match=message):
        segmenter(nnunet=str(python)).fit(TrainingSet([case(0)], augment=unchanged), 1, 0, "the job")


def test_real_and_synthetic_cases_are_weighted_by_the_share_of_the_arm(tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncp $2/job.json {tmp_path}; cp $2/raw/*/dataset.json {tmp_path}; exit 3\n")
    python.chmod(0o755)
    doubted = case(4)
    doubted = replace(doubted, label=np.where(doubted.label == 1, np.uint8(255), doubted.label))
    for share, expected in ((0.5, 0.5), (0.2, 0.2)):
        training_set = TrainingSet(
            [case(0), case(1)], [case(2), case(3), doubted], share, unchanged, exact=share != 0.5
        )
        with pytest.raises(UserError):
            segmenter(nnunet=str(python)).fit(training_set, 7, 5, "the job")
        job = json.loads((tmp_path / "job.json").read_text())
        weights = job["weights"]
        assert sum(w for name, w in weights.items() if name.startswith("synthetic")) == pytest.approx(expected)
        assert sum(weights.values()) == pytest.approx(1) and len(set(weights.values())) <= 2 and len(weights) == 5
        assert (job["steps"], job["seed"], job["batch_size"], job["sided"]) == (7, 5, 2, False)
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "class_1": 1, "ignore": 2} and dataset["numTraining"] == 5


@pytest.mark.slow
def test_our_scores_of_its_predictions_are_those_of_its_own_summary(tmp_path, nnunet):
    one = segmenter()
    one.fit(TrainingSet([case(i) for i in range(4)], [case(9)], 0.5, unchanged), 4, 0, "the job")
    ours = {}
    for number, side in ((20, 16), (21, 14)):
        scan = case(number, side)
        found = one.predict(scan)
        truth = SPACE.invert_label(np.asarray(scan.label), scan.placement)
        shares = one.probabilities(scan)
        assert found.shape == truth.shape == (side, 16, 16) and shares.shape == (2, *found.shape)
        np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
        assert (shares.argmax(0) == found).mean() > 0.99
        for folder, volume in (("truth", truth), ("found", found)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_volume(tmp_path / folder / f"c{number}.nii.gz", volume.astype(np.uint8), np.eye(4))
        scores = {(s, m): v for s, m, v in segmentation_scores(found, truth, (1, 1, 1), SCHEMA)}
        ours[f"c{number}.nii.gz"] = scores["lesion", "dice"]
    theirs = nnunet(SUMMARY, tmp_path)
    assert theirs == pytest.approx(ours, abs=1e-9) and min(ours.values()) > 0.1, "it has learned something"
    one.process.kill()
    with pytest.raises(UserError, match="the job: nnU-Net failed"):
        one.predict(case(20))
