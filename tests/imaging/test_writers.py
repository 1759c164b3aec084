"""Exported cohorts, read back by the tools that they are meant for."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from monai.data import load_decathlon_datalist

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.imaging import writers
from medaug.imaging.layouts import read_layout
from medaug.imaging.nifti import read_images, write_volume
from medaug.imaging.writers import WRITERS

SHAPE = (7, 8, 5)
BRATS = LabelSchema(((0, "background"), (1, "necrotic core"), (2, "oedema"), (4, "enhancing tumour")))
AFFINE = np.array([[0, -1.5, 0, 10], [1.2, 0, 0, -3], [0, 0, 2.0, 7], [0, 0, 0, 1]])
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")


def cohort(root, modalities=MODALITIES, dtype="int16", four_d=False, num=2) -> Manifest:
    rng = np.random.default_rng(0)
    cases = []
    for i in range(num):
        images = [rng.integers(0, 200, SHAPE).astype(dtype) for _ in modalities]
        if four_d:
            files = [f"in/case{i}.nii.gz"]
            (root / "in").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(np.stack(images, -1), AFFINE), root / files[0])
        else:
            files = [f"in/case{i}_{name}.nii.gz" for name in modalities]
            for file, image in zip(files, images, strict=True):
                write_volume(root / file, image, AFFINE)
        label = rng.choice(BRATS.values, SHAPE).astype(np.uint8)
        write_volume(root / f"in/case{i}_seg.nii.gz", label, AFFINE)
        cases.append(Case(f"case{i}", tuple(files), f"in/case{i}_seg.nii.gz", f"subject{i // 2}"))
    return Manifest("toy", "a toy", tuple(modalities), BRATS, tuple(cases), str(root))


def data(path):
    return np.asanyarray(nib.load(path).dataobj)


def assert_placed(path) -> None:
    np.testing.assert_allclose(nib.load(path).affine, AFFINE, atol=1e-6)
    image = SimpleITK.ReadImage(str(path))  # ITK counts in LPS
    np.testing.assert_allclose(image.GetOrigin()[:3], AFFINE[:3, 3] * [-1, -1, 1], atol=1e-5)
    np.testing.assert_allclose(image.GetSpacing()[:3], [1.2, 1.5, 2.0], atol=1e-5)
    assert nib.load(path).header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("four_d", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_msd_with_several_modalities_is_one_4d_file_per_case(tmp_path, dtype, four_d):
    manifest = cohort(tmp_path, dtype=dtype, four_d=four_d)
    WRITERS["msd"](manifest, tmp_path / "out")
    listed = load_decathlon_datalist(str(tmp_path / "out/dataset.json"), True, "training", str(tmp_path / "out"))
    assert len(listed) == 2
    for item, case in zip(listed, manifest.cases, strict=True):
        image = data(item["image"])
        assert image.shape == (*SHAPE, 4) and image.dtype == dtype
        np.testing.assert_array_equal(np.moveaxis(image, -1, 0), read_images(manifest.image_paths(case))[0])
        np.testing.assert_array_equal(data(item["label"]), data(manifest.label_path(case)))
        assert_placed(item["image"])
        assert_placed(item["label"])


def test_msd_with_one_modality_is_3d_and_medaug_reads_back_what_it_wrote(tmp_path):
    manifest = cohort(tmp_path, modalities=("T1",))
    WRITERS["msd"](manifest, tmp_path / "out")
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["tensorImageSize"] == "3D" and content["numTraining"] == len(content["training"]) == 2
    again = read_layout(tmp_path / "out")
    assert (again.schema, again.modalities, again.name) == (BRATS, ("T1",), "toy")
    assert [(c.name, c.subject) for c in again.cases] == [(c.name, c.subject) for c in manifest.cases]
    for one, other in zip(again.cases, manifest.cases, strict=True):
        assert data(again.image_paths(one)[0]).shape == SHAPE
        np.testing.assert_array_equal(data(again.image_paths(one)[0]), data(manifest.image_paths(other)[0]))


def test_nnunet_has_a_file_per_modality_and_consecutive_labels(tmp_path):
    manifest = cohort(tmp_path)
    WRITERS["nnunet"](manifest, tmp_path / "Dataset501_Toy")
    out = tmp_path / "Dataset501_Toy"
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    expected = {f"imagesTr/case{i}_{m:04d}.nii.gz" for i in range(2) for m in range(4)}
    assert names == expected | {f"labelsTr/case{i}.nii.gz" for i in range(2)} | {"dataset.json"}
    content = json.loads((out / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert content["labels"] == {"background": 0, "necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
    assert content["numTraining"] == 2 and content["file_ending"] == ".nii.gz"
    for case in manifest.cases:
        for m, path in enumerate(manifest.image_paths(case)):
            np.testing.assert_array_equal(data(out / f"imagesTr/{case.name}_{m:04d}.nii.gz"), data(path))
            assert_placed(out / f"imagesTr/{case.name}_{m:04d}.nii.gz")
        values, indices = data(manifest.label_path(case)), data(out / f"labelsTr/{case.name}.nii.gz")
        assert set(np.unique(values)) == {0, 1, 2, 4}
        np.testing.assert_array_equal(indices, np.where(values == 4, 3, values))


@pytest.mark.parametrize("layout", WRITERS)
def test_values_that_the_header_scales_keep_their_meaning(tmp_path, layout):
    manifest = cohort(tmp_path, modalities=("T1",), num=1)
    raw = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    image = nib.Nifti1Image(raw, AFFINE)
    image.header.set_slope_inter(0.001, 0.25)
    nib.save(image, manifest.image_paths(manifest.cases[0])[0])
    WRITERS[layout](manifest, tmp_path / "out")
    (written,) = (tmp_path / "out/imagesTr").iterdir()
    np.testing.assert_allclose(data(written), raw * 0.001 + 0.25, atol=1e-6)


def test_modalities_of_different_types_share_one_that_holds_both(tmp_path):
    manifest = cohort(tmp_path, modalities=("T1", "T2"), num=1)
    first, second = manifest.image_paths(manifest.cases[0])
    fine = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    write_volume(second, fine, AFFINE)
    WRITERS["msd"](manifest, tmp_path / "out")
    stack = data(tmp_path / "out/imagesTr/case0.nii.gz")
    np.testing.assert_array_equal(stack[..., 0], data(first))
    np.testing.assert_array_equal(stack[..., 1], fine)


@pytest.mark.parametrize("layout", WRITERS)
def test_an_existing_folder_is_refused_and_left_alone(tmp_path, layout):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(UserError, match="out: exists already; give a folder that does not"):
        WRITERS[layout](cohort(tmp_path), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("layout", WRITERS)
def test_a_fault_in_the_last_case_leaves_nothing(tmp_path, layout):
    manifest = cohort(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    manifest.label_path(manifest.cases[1]).write_bytes(b"")
    with pytest.raises(UserError, match="case1_seg.nii.gz: is empty"):
        WRITERS[layout](manifest, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("layout", WRITERS)
def test_an_interruption_and_a_full_disk_leave_nothing(tmp_path, layout, monkeypatch):
    manifest = cohort(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for error, seen in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), UserError)):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(writers.json, "dumps", fail)  # at the very end, all volumes are written
        with pytest.raises(seen):
            WRITERS[layout](manifest, tmp_path / "out")
        monkeypatch.undo()
        assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        WRITERS["msd"](cohort(tmp_path), tmp_path / "file" / "out")


def test_only_labelled_cases_are_written_and_there_must_be_one(tmp_path):
    manifest = cohort(tmp_path)
    unlabelled = [Case(c.name, c.images, None, c.subject) for c in manifest.cases]
    mixed = Manifest(**{**vars(manifest), "cases": (manifest.cases[0], unlabelled[1])})
    WRITERS["msd"](mixed, tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 1
    with pytest.raises(UserError, match="no labelled case to write"):
        WRITERS["msd"](Manifest(**{**vars(manifest), "cases": tuple(unlabelled)}), tmp_path / "none")
