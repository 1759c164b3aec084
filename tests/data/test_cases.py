"""Cases in model space and their cache: never a wrong entry, one line for a bad file."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data import cases as module
from medaug.data.cases import load_cases, read_case, read_grids
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume

SHAPE = (6, 5, 4)
PREPROCESSING = Preprocessing((8, 8, 8), None, (0.0, 100.0))
AFFINE = np.diag([-1.0, 2.0, 1.5, 1.0])


def make_manifest(root) -> Manifest:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for modality in (0, 1):
            volume = rng.integers(0, 900, SHAPE).astype(np.int16)
            write_volume(root / f"{name}_{modality}.nii.gz", volume, AFFINE)
    write_volume(root / "a_seg.nii.gz", rng.choice([0, 1, 4], SHAPE).astype(np.uint8), AFFINE)
    files = {name: (f"{name}_0.nii.gz", f"{name}_1.nii.gz") for name in "ab"}
    return Manifest(
        name="two",
        description="",
        modalities=("T1", "T2"),
        schema=LabelSchema(((0, "background"), (1, "core"), (4, "rim"))),
        cases=(
            Case("a", files["a"], "a_seg.nii.gz", "a", "train"),
            Case("b", files["b"], None, "b", "train"),
        ),
        root=str(root),
    )


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "data").mkdir()
    return make_manifest(tmp_path / "data")


def test_case_in_model_space_is_the_preprocessed_case(manifest, tmp_path):
    labelled, unlabelled = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "cache")
    host, label = read_case(manifest, manifest.cases[0])
    image, placement = PREPROCESSING.apply_image(host.array, host.affine)
    assert np.array_equal(labelled.image, image) and labelled.image.dtype == np.float32
    assert labelled.placement == placement
    assert np.array_equal(labelled.label, PREPROCESSING.apply_label(label, placement))
    assert np.array_equal(labelled.affine, AFFINE)
    assert labelled.dtype == np.int16
    assert unlabelled.label is None
    assert set(np.unique(label)) == {0, 1, 2}, "class indices, not file values"


def test_a_label_outside_the_grid_is_warned_about(manifest, tmp_path, caplog):
    label = np.zeros(SHAPE, np.uint8)
    label[0, 0, 0] = 1
    write_volume(manifest.label_path(manifest.cases[0]), label, AFFINE)
    load_cases(manifest, manifest.cases[:1], replace(PREPROCESSING, shape=(2, 2, 2)), tmp_path / "cache")
    assert "outside the model's grid 2x2x2, or is smaller than a voxel" in caplog.text


def test_grids_are_those_of_the_files(manifest):
    grids = list(read_grids(manifest, manifest.cases))
    assert len(grids) == len(manifest.cases) > 0
    for shape, affine in grids:
        assert tuple(shape) == SHAPE
        np.testing.assert_allclose(affine, AFFINE)


def test_cropped_grids_have_the_shape_that_the_crop_keeps(manifest):
    cropping = replace(PREPROCESSING, crop="body")
    for case, (shape, _) in zip(manifest.cases, read_grids(manifest, manifest.cases, "body"), strict=True):
        host, _ = read_case(manifest, case)
        _, placement = cropping.apply_image(host.array, host.affine)
        assert placement.resampled == tuple(shape)


@pytest.mark.slow
def test_worker_processes_give_the_same_cases_as_one_process(manifest, tmp_path, monkeypatch):
    alone = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "one")
    monkeypatch.setattr(module, "_MANY", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(os.cpu_count()))  # one worker is enough to be another process
    together = load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "two")
    assert [case.case for case in together] == [case.case for case in alone]
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.image, b.image) and a.placement == b.placement
    grids = read_grids(manifest, manifest.cases, "body")
    assert len(grids) == 2 and all(len(shape) == 3 for shape, _ in grids)
    write_volume(manifest.label_path(manifest.cases[0]), np.full(SHAPE, 2, np.uint8), AFFINE)
    with pytest.raises(UserError, match="a_seg.nii.gz.*label values 2"):
        load_cases(manifest, manifest.cases, PREPROCESSING, tmp_path / "two")


def shape_mismatch(manifest):
    write_volume(manifest.label_path(manifest.cases[0]), np.zeros((6, 5, 5), np.uint8), AFFINE)


def geometry_mismatch(manifest):
    write_volume(manifest.label_path(manifest.cases[0]), np.zeros(SHAPE, np.uint8), np.eye(4))


def modality_mismatch(manifest):
    write_volume(manifest.image_paths(manifest.cases[0])[1], np.zeros((6, 5, 5), np.int16), AFFINE)


def not_a_number(manifest):
    volume = np.zeros(SHAPE, np.float32)
    volume[1, 2, 3] = np.nan
    write_volume(manifest.image_paths(manifest.cases[0])[0], volume, AFFINE)


def unknown_label(manifest):
    write_volume(manifest.label_path(manifest.cases[0]), np.full(SHAPE, 2, np.uint8), AFFINE)


def missing_image(manifest):
    manifest.image_paths(manifest.cases[0])[1].unlink()


def missing_label(manifest):
    manifest.label_path(manifest.cases[0]).unlink()


def truncated(manifest):
    path = manifest.image_paths(manifest.cases[0])[0]
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (shape_mismatch, "a_seg.nii.gz.*shape"),
        (geometry_mismatch, "a_seg.nii.gz.*mm"),
        (modality_mismatch, "a_1.nii.gz.*shape"),
        (not_a_number, "a_0.nii.gz.*NaN"),
        (unknown_label, "a_seg.nii.gz.*label values 2"),
        (missing_image, "a_1.nii.gz"),
        (missing_label, "a_seg.nii.gz"),
        (truncated, "a_0.nii.gz.*cut short"),
    ],
)
def test_bad_files_give_one_line_and_leave_nothing(manifest, tmp_path, harm, named):
    harm(manifest)
    with pytest.raises(UserError, match=named) as caught:
        load_cases(manifest, manifest.cases[:1], PREPROCESSING, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.json"))


def test_modalities_are_counted(manifest):
    three = replace(manifest, modalities=("T1", "T2", "FLAIR"))
    with pytest.raises(UserError, match="2 image volume.*3 modalities"):
        read_case(three, three.cases[0])
