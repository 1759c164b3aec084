"""Pairs read by TorchIO and SimpleITK as by nibabel, and a picture archive that takes the exported study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import torchio
from dicom_files import oblique

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.exporting.formats import WRITERS
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume
from medaug.marking.verification import verify

SHAPE = (9, 7, 5)
SCHEMA = LabelSchema(((0, "background"), (2, "lesion")))
RECORD = {"name": "pair", "checkpoint": "0" * 64, "subjects": ["s"]}
LPS = np.diag([-1.0, -1, 1, 1])


def cohort(root: Path, affine: np.ndarray) -> Manifest:
    rng = np.random.default_rng(0)
    for name in ("T1", "T2"):
        write_volume(root / f"{name}.nii.gz", rng.integers(0, 900, SHAPE).astype(np.int16), affine)
    write_volume(root / "seg.nii.gz", rng.choice([0, 2], SHAPE).astype(np.uint8), affine)
    case = Case("pair", ("T1.nii.gz", "T2.nii.gz"), "seg.nii.gz", "s")
    return Manifest("toy", "", ("T1", "T2"), SCHEMA, (case,), str(root))


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
@pytest.mark.parametrize("flip", [1, -1])
def test_torchio_and_simpleitk_place_the_pairs_as_nibabel_does(tmp_path, layout, flip):
    affine = oblique() @ np.diag([flip, 1, 1, 1])
    WRITERS[layout](Export(cohort(tmp_path, affine), tmp_path / "out", {"pair": RECORD}))
    files = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert len(files) == (2 if layout == "msd" else 3)
    for file in files:
        image = nib.load(file)
        voxels = np.asanyarray(image.dataobj)
        label = file.parent.name.startswith("labels")
        by_torchio = (torchio.LabelMap if label else torchio.ScalarImage)(file)
        np.testing.assert_array_equal(by_torchio.numpy(), np.moveaxis(voxels.reshape(*SHAPE, -1), -1, 0))
        np.testing.assert_allclose(np.asarray(by_torchio.affine), image.affine, atol=1e-5)
        by_itk = SimpleITK.ReadImage(str(file))
        stored = SimpleITK.GetArrayFromImage(by_itk)
        np.testing.assert_array_equal(
            stored.T.reshape(*SHAPE, -1) if voxels.ndim == 3 else stored.T, voxels.reshape(*SHAPE, -1)
        )
        matrix = np.eye(4)
        dimension = by_itk.GetDimension()
        directions = np.reshape(by_itk.GetDirection(), (dimension, dimension))[:3, :3]
        matrix[:3, :3] = directions @ np.diag(by_itk.GetSpacing()[:3])
        matrix[:3, 3] = by_itk.GetOrigin()[:3]
        np.testing.assert_allclose(LPS @ matrix, image.affine, atol=1e-5)
    assert (
        torchio.Subject(image=torchio.ScalarImage(files[0]), label=torchio.LabelMap(files[-1])).check_consistent_space()
        is None
    )


@pytest.mark.slow
def test_an_orthanc_takes_the_study_by_c_store_and_serves_it_unchanged(tmp_path, tool):
    for name in ("Orthanc", "storescu", "unshare", "ip"):
        tool(name)
    WRITERS["dicom"](Export(cohort(tmp_path, oblique()), tmp_path / "out", {"pair": RECORD}))
    served = tmp_path / "served"
    served.mkdir()
    script = Path(__file__).parents[1] / "orthanc_round.py"
    command = ["unshare", "-rn", sys.executable, str(script), str(tmp_path / "out"), str(served)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["1", "3"]  # a study of two series and a SEG
    sent = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "out").rglob("*.dcm"))}
    found = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, served.glob("*.dcm"))}
    assert len(sent) == 2 * SHAPE[2] + 1 and found == sent
    assert {verdict.state for verdict in verify(served, None)} == {"unchanged"}
