"""The phantom cohort: reproducible, anatomically sane, and written as ordinary BraTS files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medaug.errors import UserError
from medaug.phantoms import head as phantom
from medaug.phantoms.head import MODALITIES, PhantomSubject, add_rician_noise, make_subject, smooth_field
from medaug.phantoms.tumour import ENHANCING, NECROSIS, OEDEMA, TumourSize, grow_tumour

CLASSES = (NECROSIS, OEDEMA, ENHANCING)
COHORT_SIZE = 12


@functools.cache
def cohort() -> list[PhantomSubject]:
    """Twelve phantoms, made once for all tests that only look."""
    return [make_subject(7, index, (48, 48, 48)) for index in range(COHORT_SIZE)]


def same(a: PhantomSubject, b: PhantomSubject) -> bool:
    """Whether two phantoms are equal to the last bit."""
    arrays: list[tuple[Any, Any]] = [(a.images[name], b.images[name]) for name in MODALITIES] + [
        (a.label, b.label),
        (a.affine, b.affine),
    ]
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in arrays)


@pytest.mark.slow
def test_a_subject_depends_only_on_its_arguments() -> None:
    """Neither earlier calls nor the state of numpy's global generator matter."""
    np.random.seed(1)
    make_subject(0, 0, (32, 32, 32))
    assert same(make_subject(7, 3, (48, 48, 48)), cohort()[3])
    assert not same(make_subject(8, 3, (48, 48, 48)), cohort()[3])


@pytest.mark.slow
def test_subjects_differ() -> None:
    """No two subjects have equal brain masks or labels."""
    for i, a in enumerate(cohort()):
        for b in cohort()[:i]:
            assert np.mean((a.images["T1"] > 0) != (b.images["T1"] > 0)) > 0.01
            assert not np.array_equal(a.label, b.label)
    volumes = [np.count_nonzero(subject.label) for subject in cohort()]
    assert max(volumes) > 2 * min(volumes)


@pytest.mark.slow
@settings(max_examples=10)
@given(st.integers(0, 10**9), st.integers(0, 999), st.tuples(*[st.integers(32, 56)] * 3))
def test_any_shape(seed: int, index: int, shape: tuple[int, int, int]) -> None:
    """Types, ranges and the head inside the grid hold for every seed and shape; every class is there."""
    subject = make_subject(seed, index, shape)
    assert subject.label.shape == shape and subject.label.dtype == np.uint8
    assert set(np.unique(subject.label)) == {0, *CLASSES}
    assert all(np.count_nonzero(subject.label == value) >= 3 for value in CLASSES)
    for image in subject.images.values():
        assert image.shape == shape and image.dtype == np.int16
        assert image.min() == 0 and 1000 < image.max() <= 4000
        # The template is cut off at the brain stem, so only the lowest slice may hold brain. Of the other faces the
        # strangest deformations in a thousand touch a few voxels (seed 306316, index 999).
        faces = (image[0], image[-1], image[:, 0], image[:, -1], image[..., -1])
        assert max(np.count_nonzero(face) / face.size for face in faces) < 0.01
    brain_ml = np.count_nonzero(subject.images["T2"]) * np.linalg.det(subject.affine) / 1000
    assert 1300 < brain_ml < 2500  # the template has 1890 ml


@pytest.mark.slow
def test_largest_shape() -> None:
    """160 voxels a side works and shows the same head, with the same tumour volume, as 48 do."""
    large, small = make_subject(7, 3, (160, 160, 160)), cohort()[3]
    for value in CLASSES:
        volumes = [np.count_nonzero(s.label == value) * np.linalg.det(s.affine) / 1000 for s in (large, small)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.35)
    centres = [s.affine[:3, :3] @ ndimage.center_of_mass(s.label > 0) + s.affine[:3, 3] for s in (large, small)]
    assert np.linalg.norm(centres[0] - centres[1]) < 8


@pytest.mark.parametrize("index", range(COHORT_SIZE))
def test_core_is_enclosed_in_brain(index: int) -> None:
    """The shell around the core is rim everywhere, and the tumour stays inside the brain."""
    subject = cohort()[index]
    core = subject.label == NECROSIS
    shell = ndimage.binary_dilation(core) & ~core
    assert np.all(subject.label[shell] == ENHANCING)
    for image in subject.images.values():
        assert np.mean(image[subject.label > 0] > 0) > 0.999  # noise reaches 0 occasionally
    brain = ndimage.binary_fill_holes(subject.images["T2"] > 0)
    assert np.all(brain[subject.label > 0])


def test_contrasts_order_tissues_as_in_glioma_mr() -> None:
    """Mean of each class against normal tissue, which is found by its intensity on T1, away from the tumour.

    So the test does not lean on the tissue maps that the phantom was painted from.
    """
    for subject in cohort():
        healthy = (subject.images["T1"] > 0) & ~ndimage.binary_dilation(subject.label > 0, iterations=2)
        t1 = subject.images["T1"]
        white = healthy & (t1 > np.quantile(t1[healthy], 0.6))
        fluid = healthy & (t1 < np.quantile(t1[healthy], 0.03)) & ndimage.binary_erosion(t1 > 0, iterations=3)

        def mean(name: str, where: np.ndarray, subject: PhantomSubject = subject) -> float:
            return float(subject.images[name][where].mean())

        core, oedema, rim = (subject.label == value for value in CLASSES)
        assert mean("T1ce", rim) > 1.15 * mean("T1ce", white)
        assert mean("T1ce", rim) > 2 * mean("T1ce", core)
        assert mean("T1", core) < 0.7 * mean("T1", white)
        assert mean("T1", oedema) < 0.9 * mean("T1", white)
        assert mean("T2", core) > 1.4 * mean("T2", white)
        assert mean("T2", oedema) > 1.3 * mean("T2", white)
        assert mean("FLAIR", oedema) > 1.3 * mean("FLAIR", white)
        assert mean("FLAIR", oedema) > mean("FLAIR", rim) > mean("FLAIR", core)
        assert mean("FLAIR", fluid) < mean("FLAIR", white) and mean("T2", fluid) > mean("T2", white)


@pytest.mark.slow
def test_tumours_lie_mostly_in_white_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the given tissue fractions; oedema more often than chance, which is about 0.4."""
    fractions = []

    def spy(white: np.ndarray, *rest: object) -> np.ndarray:
        label = grow_tumour(white, *rest)  # type: ignore[arg-type]
        fractions.append([white[label > 0].mean(), white[label == OEDEMA].mean(), white[white > 0].mean()])
        return label

    monkeypatch.setattr(phantom, "grow_tumour", spy)
    for index in range(8):
        make_subject(11, index, (48, 48, 48))
    tumour, oedema, anywhere = np.mean(fractions, axis=0)
    assert tumour > 0.6 and oedema > 0.65 and anywhere < 0.5


@pytest.mark.slow
def test_growth_in_uniform_tissue_is_a_ball() -> None:
    """Closed form: at constant speed the classes are concentric shells of the requested volumes."""
    shape, spacing = (61, 61, 61), np.ones(3)
    ones, zeros = np.ones(shape), np.zeros(shape)
    size = TumourSize(core=4.0, rim=4.0, oedema=12.0)
    label = grow_tumour(ones, zeros, ones > 0, (30, 30, 30), spacing, zeros, size)
    distance = np.linalg.norm(np.indices(shape) - 30, axis=0)
    inside = 0.0
    for value, volume in ((NECROSIS, 4.0), (ENHANCING, 4.0), (OEDEMA, 12.0)):
        # Voxels that tie for last place all belong, hence a little more than the volume.
        assert np.count_nonzero(label == value) == pytest.approx(1000 * volume, rel=0.15)
        inside += np.count_nonzero(label == value)
        radius = np.cbrt(3 * inside / (4 * np.pi))
        # Dijkstra with 26 neighbours overestimates oblique distances by at most 12 %.
        assert distance[label == value].max() < 1.13 * radius


def test_growth_stops_at_fluid() -> None:
    """A sheet of fluid across the grid cannot be crossed."""
    shape = (40, 40, 40)
    ones, zeros = np.ones(shape), np.zeros(shape)
    fluid = zeros.copy()
    fluid[25] = 1
    label = grow_tumour(1 - fluid, fluid, ones > 0, (20, 20, 20), np.ones(3), zeros, TumourSize(2, 2, 20))
    assert label[24].any() and not label[25:].any()


def test_rician_noise_moments() -> None:
    """E[M^2] = S^2 + 2 sigma^2 at any signal; Rayleigh mean sigma sqrt(pi/2) where there is none."""
    rng = np.random.default_rng(0)
    for signal in (0.0, 10.0, 100.0):
        magnitude = add_rician_noise(np.full(400_000, signal), 10.0, rng)
        assert np.mean(magnitude**2) == pytest.approx(signal**2 + 200, rel=0.01)
    background = add_rician_noise(np.zeros(400_000), 10.0, rng)
    assert background.min() >= 0 and background.mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.01)


def test_smooth_field_statistics_and_resolution() -> None:
    """Unit variance over many draws, and the same field on a coarse grid and on a fine one."""
    axis = np.linspace(-80, 80, 9)
    draws = [smooth_field(np.random.default_rng(i), [axis] * 3, 20.0) for i in range(40)]
    assert np.mean(draws) == pytest.approx(0, abs=0.03) and np.std(draws) == pytest.approx(1, abs=0.1)
    fine = smooth_field(np.random.default_rng(0), [np.linspace(-80, 80, 33)] * 3, 20.0)
    np.testing.assert_allclose(fine[::4, ::4, ::4], draws[0], atol=1e-5)


@pytest.mark.slow
def test_cohort_files(tmp_path: Path) -> None:
    """Two independent readers get the expected arrays and geometry."""
    shape = (32, 36, 34)
    phantom.write_cohort(tmp_path, 2, shape, seed=5)
    assert "not patients" in (tmp_path / "PHANTOM.txt").read_text()
    for index in range(2):
        subject = make_subject(5, index, shape)
        name = f"Phantom_{index:03d}"
        expected: dict[str, Any] = {modality.lower(): image for modality, image in subject.images.items()}
        for part, array in {**expected, "seg": subject.label}.items():
            path = tmp_path / name / f"{name}_{part}.nii.gz"
            nifti = nibabel.load(path)
            assert isinstance(nifti, nibabel.Nifti1Image)
            assert nifti.get_data_dtype() == array.dtype and nifti.header.get_xyzt_units()[0] == "mm"
            np.testing.assert_array_equal(np.asarray(nifti.dataobj), array)
            np.testing.assert_allclose(nifti.affine, subject.affine, atol=1e-4)
            itk = sitk.ReadImage(str(path))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).T, array)
            corner = np.array(itk.TransformIndexToPhysicalPoint([3, 5, 7])) * [-1, -1, 1]  # LPS to RAS
            np.testing.assert_allclose(corner, (subject.affine @ [3, 5, 7, 1])[:3], atol=1e-3)


@pytest.mark.slow
def test_cohort_resumes_grows_and_refuses(tmp_path: Path) -> None:
    """A missing file is made again with the same content; other seeds, shapes and smaller cohorts are refused."""
    shape = (32, 32, 32)
    phantom.write_cohort(tmp_path, 2, shape, seed=5)
    seg = tmp_path / "Phantom_001" / "Phantom_001_seg.nii.gz"
    kept = tmp_path / "Phantom_000" / "Phantom_000_t1.nii.gz"
    before, stamp = seg.read_bytes(), kept.stat().st_mtime_ns
    seg.unlink()
    phantom.write_cohort(tmp_path, 3, shape, seed=5)
    assert kept.stat().st_mtime_ns == stamp
    assert np.array_equal(nibabel.load(seg).get_fdata(), make_subject(5, 1, shape).label)  # type: ignore[attr-defined]
    assert len(before) == len(seg.read_bytes())
    assert (tmp_path / "Phantom_002" / "Phantom_002_flair.nii.gz").exists()
    with pytest.raises(UserError, match="another seed or shape"):
        phantom.write_cohort(tmp_path, 3, shape, seed=6)
    with pytest.raises(UserError, match="holds 3 phantoms, but 2 were requested"):
        phantom.write_cohort(tmp_path, 2, shape, seed=5)


def test_files_of_others_are_not_replaced(tmp_path):
    path = tmp_path / "Phantom_000" / "Phantom_000_t1.nii.gz"
    path.parent.mkdir()
    path.write_text("years of work")
    with pytest.raises(UserError, match="holds Phantom_[*] but no PHANTOM.txt"):
        phantom.write_cohort(tmp_path, 2, (32, 32, 32), 0)
    assert path.read_text() == "years of work" and len(list(tmp_path.rglob("*"))) == 2
