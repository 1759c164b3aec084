"""Rounded direction cosines: the written files still have axes at right angles."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import LPS, axial, oblique, ramp, write_series
from pydicom.dataset import Dataset
from test_convert import SCHEMA, UNLABELLED, in_this_process, ingested, out, root  # noqa: F401
from test_tree import box, draw_seg

from medaug.dicom.stack import right_angled
from medaug.imaging.reading import read_header
from medaug.imaging.volume import corner_distance, shear
from medaug.preflight.geometry import check_grid


def rounded(decimals: int, jitter: float):
    """Write direction cosines with few decimals, rounded differently in each slice."""
    rng = np.random.default_rng(0)

    def edit(index: int, dataset: Dataset) -> None:
        cosines = np.array(dataset.ImageOrientationPatient, float) + rng.choice([-1, 0, 1], 6) * jitter
        dataset.ImageOrientationPatient = [f"{cosine:.{decimals}f}" for cosine in cosines]
        dataset.ImagePositionPatient = [f"{value:.2f}" for value in dataset.ImagePositionPatient]

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(("decimals", "jitter"), [(4, 1e-4), (3, 0)])
def test_files_have_right_angles_and_other_readers_accept_them(
    root: Path,  # noqa: F811
    out: Path,  # noqa: F811
    decimals: int,
    jitter: float,
) -> None:
    affine, shape = oblique((0.5, 0.5, 2), (0.31, -0.2, 0.1)), (200, 180, 30)
    images = write_series(root, ramp(shape), affine, SeriesDescription="t1", edit=rounded(decimals, jitter))
    if not jitter:  # highdicom insists on equal cosines
        draw_seg(root / "seg.dcm", images, {"core": box(shape)})
    with ingested(root, out, schema=UNLABELLED if jitter else SCHEMA) as result:
        manifest = result.keep()
    assert not [finding for finding in result.findings if finding.severity != "note"]
    (case,) = manifest.cases
    for name in (case.images[0], *([] if jitter else [case.label])):
        path = out.parent / "cohort" / name
        header = read_header(path)
        assert shear(header.affine).max() < 1e-6 and not header.doubts
        assert not list(check_grid("case", name, header))
        image = sitk.ReadImage(str(path))
        direction = np.array(image.GetDirection()).reshape(3, 3)
        np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
        # Every corner is where the scanner put it, up to the rounding of the header over 100 mm.
        assert corner_distance(shape, header.affine, affine) < 120 * 10.0**-decimals
        for index in np.ndindex(2, 2, 2):
            corner = [i * (side - 1) for i, side in zip(index, shape, strict=True)]
            point = LPS @ [*image.TransformIndexToPhysicalPoint(corner), 1]
            np.testing.assert_allclose(point, header.affine @ [*corner, 1], atol=1e-3)
    np.testing.assert_array_equal(np.asarray(nib.load(out.parent / "cohort" / case.images[0]).dataobj), ramp(shape))


def test_the_nearest_right_angles_keep_centre_and_voxel_size() -> None:
    affine, shape = oblique((0.5, 0.7, 3)), (60, 50, 20)
    np.testing.assert_allclose(right_angled(affine, shape), affine, atol=1e-12)
    bent = affine.copy()
    bent[:3, :3] += np.random.default_rng(1).normal(0, 5e-4, (3, 3))
    straight = right_angled(bent, shape)
    assert shear(straight).max() < 1e-12
    np.testing.assert_allclose(np.linalg.norm(straight[:3, :3], axis=0), np.linalg.norm(bent[:3, :3], axis=0))
    centre = [*(np.array(shape) - 1) / 2, 1]
    np.testing.assert_allclose(straight @ centre, bent @ centre, atol=1e-9)
    assert np.linalg.det(straight[:3, :3]) * np.linalg.det(affine[:3, :3]) > 0


def test_exact_headers_are_written_unchanged(root: Path, out: Path) -> None:  # noqa: F811
    write_series(root, ramp(), axial((0.4, 0.9, 6.5)), SeriesDescription="t1")
    with ingested(root, out) as result:
        (path,) = result.manifest.image_paths(result.manifest.cases[0])
        np.testing.assert_array_equal(nib.load(path).affine, axial((0.4, 0.9, 6.5)).astype(np.float32))
