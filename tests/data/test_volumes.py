"""Splits by volume, against volumes that SimpleITK measures and ranks that pandas computes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.cohorts import find_cohort
from medaug.data.volumes import split_by_volume, subject_volumes
from medaug.errors import UserError
from medaug.options import DataOptions

SPLITS = ["train", "val", "test", "train", "train", "val", "train", "test", "train", "train"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Ten subjects with two scans of 8^3 each, on grids with other voxel sizes; some voxels are ignored."""
    root, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    cases = []
    for index, split in enumerate(SPLITS):
        for visit in range(2):
            affine = np.diag([*rng.uniform(0.5, 2, 3), 1.0])
            label = rng.choice([0, 1, 9], (8, 8, 8), p=[0.5, 0.4, 0.1]).astype(np.uint8)
            name = f"s{index}_{visit}"
            for kind, array in (("image", rng.normal(size=(8, 8, 8)).astype(np.float32)), ("label", label)):
                nib.save(nib.Nifti1Image(array, affine), root / f"{name}_{kind}.nii.gz")
            cases.append(Case(name, (f"{name}_image.nii.gz",), f"{name}_label.nii.gz", f"s{index}", split))
    schema = LabelSchema(((0, "background"), (1, "organ")), ignore=9)
    return Manifest("ten", "", ("MR",), schema, tuple(cases), str(root))


def test_volumes_equal_those_of_simpleitk(cohort):
    expected: dict[str, list[float]] = {}
    for case in cohort.cases:
        image = sitk.ReadImage(str(cohort.label_path(case)), sitk.sitkUInt8)
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(image)
        expected.setdefault(case.subject, []).append(shape.GetPhysicalSize(1))
    found = subject_volumes(cohort)
    assert found == pytest.approx({subject: np.mean(volumes) for subject, volumes in expected.items()}, rel=1e-6)


def test_subjects_are_moved_by_rank_and_validation_subjects_are_never_tested(cohort, tmp_path):
    cohort.save(tmp_path / "cohort.json")
    options = DataOptions(manifest=str(tmp_path / "cohort.json"), test_volumes=[0, 0.25], train_volumes=[0.4, 1])
    split = {case.name: case.split for case in find_cohort(options, tmp_path).cases}
    ranks = pd.Series(subject_volumes(cohort)).rank(method="first") - 1
    for case in cohort.cases:
        share = ranks[case.subject] / (len(ranks) - 1)
        if case.split == "val":
            expected = "val" if share >= 0.4 else None
        else:
            expected = "test" if share <= 0.25 else "train" if share >= 0.4 else None
        assert split.get(case.name) == expected, case.name
    assert set(split.values()) == {"train", "val", "test"}


def test_a_subject_without_a_volume_is_left_out():
    cases = [Case(f"c{i}", ("a",), "b", f"s{i}") for i in range(4)]
    found = split_by_volume(cases, {"s0": 1.0, "s1": 2.0, "s2": 3.0}, [0.5, 1], [0, 0.5])
    assert [(case.name, case.split) for case in found] == [("c0", "test"), ("c1", "test"), ("c2", "train")]


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ([0.2, 1], [0, 0.25], r"data.train_volumes=\[0.2, 1\] and data.test_volumes=\[0, 0.25\] overlap"),
        ([0.1, 0.2], [0.5, 1], "data.train_volumes: no train subject has such a volume"),
        ([0.5, 1], [0.1, 0.2], "data.test_volumes: no test subject has such a volume"),
    ],
)
def test_ranges_that_leave_nothing_are_refused(train, test, reason):
    cases = [Case(f"c{i}", ("a",), "b", f"s{i}") for i in range(3)]
    with pytest.raises(UserError, match=reason):
        split_by_volume(cases, {"s0": 1.0, "s1": 2.0, "s2": 3.0}, train, test)
