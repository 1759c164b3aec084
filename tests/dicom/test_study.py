"""The real DICOM study against dcm2niix."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from medaug.dicom.headers import scan_in_process, scan_tree
from medaug.dicom.series import read_series, series_problems
from medaug.errors import UserError
from medaug.imaging.volume import corner_distance


@pytest.fixture(scope="session")
def study(medaug_data):
    return medaug_data / "dicom" / "PGBM-002"


def canonical(array, affine):
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(array), affine))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.slow
def test_study_equals_dcm2niix(study, tool, tmp_path):
    command = [tool("dcm2niix"), "-z", "n", "-b", "n", "-f", "%j", "-o", str(tmp_path), str(study)]
    subprocess.run(command, check=True, capture_output=True)
    tree = scan_tree(study)
    assert len(tree.series) == 5 and not tree.unreadable
    for series in tree.series:
        assert series_problems(series) == []
        volume = read_series(series)
        array, affine = canonical(volume.array, volume.affine)
        other = nib.load(tmp_path / f"{series.uid}.nii")
        other_array, other_affine = canonical(other.dataobj, other.affine)
        np.testing.assert_array_equal(array, other_array)
        assert corner_distance(array.shape, affine, other_affine) < 5e-3


@pytest.mark.slow
def test_study_without_a_slice(study):
    (series,) = scan_in_process(study / "12-T1post-05670").series
    whole = read_series(series)
    kept = tuple(sorted(series.instances, key=lambda one: one.planes[0].position[2]))
    holed = replace(series, instances=kept[:9] + kept[10:])
    with pytest.raises(UserError, match=r"series 12: lacks 1 slice: 1 after slice 9 \(13 mm to the next, 6.5 mm"):
        read_series(holed)
    filled = read_series(holed, "resample")
    assert filled.array.shape == whole.array.shape
    assert corner_distance(whole.array.shape, filled.affine, whole.affine) < 1e-4
    others = [index for index in range(22) if index != 9]
    np.testing.assert_array_equal(filled.array[:, :, others], whole.array[:, :, others])
