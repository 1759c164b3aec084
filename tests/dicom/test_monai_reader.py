"""medaug's reader inside MONAI's LoadImaged, against MONAI's own and dcm2niix."""

from __future__ import annotations

import subprocess

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import oblique, ramp, uid, write_enhanced, write_series
from monai.data import NibabelReader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Orientationd
from pydicom.sr.codedict import codes

from medaug.dicom.monai_reader import MedaugReader
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume


def load(path, reader=MedaugReader):
    return LoadImaged("image", reader=reader, ensure_channel_first=True)({"image": path})["image"]


def same(ours, theirs):
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=1e-5)
    for key in ("spatial_shape", "space", "original_affine"):
        np.testing.assert_array_equal(np.asarray(ours.meta[key]), np.asarray(theirs.meta[key]))


def test_nifti_as_nibabel_reads_it(tmp_path):
    write_volume(tmp_path / "a.nii.gz", ramp(), oblique())
    write_volume(tmp_path / "b.nii", ramp() + 7, oblique())
    nib.save(nib.Nifti1Image(ramp((6, 5, 4, 3)), oblique()), tmp_path / "c.nii.gz")
    same(load(tmp_path / "a.nii.gz"), load(tmp_path / "a.nii.gz", NibabelReader))
    both = [tmp_path / "a.nii.gz", tmp_path / "b.nii"]
    same(load(both), load(both, NibabelReader))
    four = load(tmp_path / "c.nii.gz")
    assert four.shape == (3, 6, 5, 4)
    np.testing.assert_array_equal(four.numpy(), load(tmp_path / "c.nii.gz", NibabelReader).numpy())


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_itk_formats(tmp_path, suffix):
    write_volume(tmp_path / "a.nii", ramp(), oblique())
    sitk.WriteImage(sitk.ReadImage(tmp_path / "a.nii"), tmp_path / f"a{suffix}")
    ours, theirs = load(tmp_path / f"a{suffix}"), load(tmp_path / "a.nii", NibabelReader)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=1e-4)


def test_dicom_folder_and_multi_frame_file(tmp_path):
    write_series(tmp_path / "series", ramp(), oblique(), names="IM{}".format)
    write_enhanced(tmp_path / "multi", ramp(), oblique(), order=[3, 1, 2, 0])
    for path in (tmp_path / "series", tmp_path / "multi"):
        image = load(path)
        np.testing.assert_array_equal(image.numpy()[0], ramp())
        np.testing.assert_allclose(image.affine.numpy(), oblique(), atol=1e-5)


def test_segmentation(tmp_path):
    paths = write_series(tmp_path / "series", ramp(), oblique())
    mask = np.zeros((4, 5, 6), np.uint8)  # slices, rows, columns
    mask[1:3, 1:4, 2:5] = 1
    source = [pydicom.dcmread(path) for path in paths]
    segment = hd.seg.SegmentDescription(
        1, "thing", codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    seg = hd.seg.Segmentation(
        source, mask, "BINARY", [segment], uid("seg"), 7, uid("seg", 1), 1, "nobody", "none", "1", "1"
    )
    seg.save_as(tmp_path / "seg.dcm")
    image = load(tmp_path / "seg.dcm")
    found = {
        tuple(point) for point in (image.affine.numpy() @ np.vstack([np.argwhere(image[0]).T, np.ones(18)])).T.round(2)
    }
    expected = {tuple(point) for point in (oblique() @ np.vstack([np.argwhere(mask.T).T, np.ones(18)])).T.round(2)}
    assert found == expected


def test_in_a_pipeline(tmp_path):
    write_series(tmp_path, ramp(), oblique())
    pipeline = Compose(
        [LoadImaged("image", reader=MedaugReader), EnsureChannelFirstd("image"), Orientationd("image", "RAS")]
    )
    image = pipeline({"image": tmp_path})["image"]
    assert "".join(nib.aff2axcodes(image.affine.numpy())) == "RAS"


def test_a_refused_series_is_not_passed_to_other_readers(tmp_path):
    """After an error in `read`, LoadImage would try MONAI's own readers, which would read a wrong volume."""
    write_series(tmp_path, ramp((6, 5, 6)))[2].unlink()
    for options in ({}, {"image_only": False}):
        with pytest.raises(UserError, match="lacks 1 slice"):
            LoadImage(reader=MedaugReader, **options)(tmp_path)


def test_files_on_different_grids(tmp_path):
    write_volume(tmp_path / "a.nii", ramp(), np.eye(4))
    write_volume(tmp_path / "b.nii", ramp(), 2 * np.eye(4))
    with pytest.raises(UserError, match=r"b\.nii: lies .* away from the grid of a\.nii"):
        LoadImage(reader=MedaugReader)([tmp_path / "a.nii", tmp_path / "b.nii"])


def test_verify_suffix(tmp_path):
    paths = write_series(tmp_path, ramp(), names="IM{}".format)
    (tmp_path / "notes.txt").write_text("notes")
    reader = MedaugReader()
    assert (
        reader.verify_suffix(tmp_path) and reader.verify_suffix(paths[0]) and reader.verify_suffix(["a.nii", "b.mha"])
    )
    assert not reader.verify_suffix(tmp_path / "notes.txt")


@pytest.mark.slow
def test_study_as_dcm2niix_converts_it(medaug_data, tool, tmp_path):
    folders = sorted((medaug_data / "dicom" / "PGBM-002").iterdir())
    assert len(folders) >= 4
    for folder in folders:
        command = [tool("dcm2niix"), "-z", "n", "-b", "n", "-f", folder.name, "-o", str(tmp_path), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        to_ras = Orientationd("image", "RAS")
        ours = to_ras({"image": load(folder)})["image"]
        theirs = to_ras({"image": load(tmp_path / f"{folder.name}.nii", NibabelReader)})["image"]
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=5e-3)
