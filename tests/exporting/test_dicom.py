"""Cohorts as DICOM: read again by medaug, highdicom, dcm2niix and pydicom, and checked by dciodvfy."""

from __future__ import annotations

import errno
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import oblique

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.dicom.seg import read_seg
from medaug.dicom.series import read_folder
from medaug.errors import UserError
from medaug.exporting.dicom import write_dicom
from medaug.exporting.dicom_series import Stored, kind_of
from medaug.exporting.request import Export
from medaug.imaging.nifti import read_nifti, write_volume
from medaug.imaging.volume import Header, corner_distance
from medaug.ingest import main as ingest
from medaug.options import IngestOptions, Options

SHAPE = (10, 9, 6)
MODALITIES = ("T1", "CT", "PET", "other")
SCHEMA = LabelSchema(((0, "background"), (1, "core"), (3, "oedema")))
REGIONS = replace(SCHEMA, regions=(("whole", (1, 3)), ("core", (1,))))
KNOWN = "(0008,001c)"  # Synthetic Data, which dciodvfy of 2022 does not know yet
# Slices run backwards along the normal, and the first axis of the array is the scanner's second.
AFFINE = oblique()[:, [1, 0, 2, 3]]


def cohort(root: Path, schema: LabelSchema = SCHEMA) -> Manifest:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(-50, 900, SHAPE).astype(np.int16),
        rng.integers(-1000, 2000, SHAPE).astype(np.int16),
        rng.random(SHAPE).astype(np.float32) * 7,
        rng.normal(size=SHAPE).astype(np.float32),
    ]
    for name, image in zip(MODALITIES, images, strict=True):
        write_volume(root / f"{name}.nii.gz", image, AFFINE)
    write_volume(root / "seg.nii.gz", rng.choice(schema.values, SHAPE).astype(np.uint8), AFFINE)
    files = tuple(f"{name}.nii.gz" for name in MODALITIES)
    cases = (Case("pair", files, "seg.nii.gz", "Jürg"), Case("scan", files, "seg.nii.gz", "Eva"))
    return Manifest("toy", "", MODALITIES, schema, cases, str(root))


def only_t1(manifest: Manifest) -> Manifest:
    case = replace(manifest.cases[0], images=manifest.cases[0].images[:1])
    return replace(manifest, modalities=("T1",), cases=(case,))


def export(manifest: Manifest, out: Path, kind: str = "BINARY", checkpoint: str = "0" * 64) -> Path:
    write_dicom(Export(manifest, out, {"pair": {"checkpoint": checkpoint}}, segmentation=kind))
    return out


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def out(manifest, tmp_path_factory) -> Path:
    return export(manifest, tmp_path_factory.mktemp("dicom") / "out")


def half_steps(array: np.ndarray) -> float:
    """Half the step of 16 bits over the range of a float volume; 0 for whole numbers, which stay exact."""
    return 0.0 if array.dtype.kind == "i" else 1.001 * max(np.ptp(array), 2 * np.abs(array).max()) / 65534 / 2


@pytest.mark.slow
def test_medaug_reads_voxels_and_geometry_back(manifest, out):
    for name, path in zip(MODALITIES, manifest.image_paths(manifest.cases[0]), strict=True):
        volume, original = read_folder(out / "pair" / name), read_nifti(path)[0]
        back = np.flip(volume.array, 2)  # it counts slices along the normal
        np.testing.assert_allclose(back, original.array, rtol=0, atol=half_steps(original.array))
        affine = volume.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1.0]])
        assert corner_distance(SHAPE, affine, AFFINE) < 1e-5


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_the_segmentation_is_identical_for_highdicom_and_medaug(manifest, out, tmp_path, kind):
    folder = out if kind == "BINARY" else export(only_t1(manifest), tmp_path / "out", kind)
    label = read_nifti(manifest.label_path(manifest.cases[0]))[0].array
    for case, algorithm in (("pair", "AUTOMATIC"), ("scan", "MANUAL"))[: 2 if folder == out else 1]:
        seg = highdicom.seg.segread(folder / case / "SEG.dcm")
        series = [pydicom.dcmread(path) for path in sorted((folder / case / "T1").iterdir())]
        planes = seg.get_pixels_by_source_instance([one.SOPInstanceUID for one in series], combine_segments=True)
        np.testing.assert_array_equal(planes.transpose(2, 1, 0), SCHEMA.to_indices(label, "label"))
        described = [seg.get_segment_description(number) for number in (1, 2)]
        assert [(d.segment_label, d.algorithm_type.value) for d in described] == [
            (name, algorithm) for name in SCHEMA.foreground
        ]
        assert seg.FrameOfReferenceUID == series[0].FrameOfReferenceUID
    masks = read_seg(folder / "pair" / "SEG.dcm", Header(SHAPE, AFFINE, np.dtype(np.uint8)))
    for value, mask in zip((1, 3), masks, strict=True):
        np.testing.assert_array_equal(mask.draw()[0], label == value)


def test_regions_become_segments_that_overlap(tmp_path):
    manifest = only_t1(cohort(tmp_path, REGIONS))
    seg = highdicom.seg.segread(export(manifest, tmp_path / "out") / "pair" / "SEG.dcm")
    label = read_nifti(manifest.label_path(manifest.cases[0]))[0].array
    masks = read_seg(tmp_path / "out/pair/SEG.dcm", Header(SHAPE, AFFINE, np.dtype(np.uint8)))
    assert seg.number_of_segments == 3 and [mask.name for mask in masks] == ["core", "oedema", "whole"]
    np.testing.assert_array_equal(masks[2].draw()[0], label > 0)
    with pytest.raises(UserError, match="regions whole overlap classes, which a LABELMAP cannot hold; give segm"):
        export(manifest, tmp_path / "map", "LABELMAP")


def test_headers_say_what_the_files_are_and_contain_no_name(out):
    for case, patient, synthetic, purpose in (
        ("pair", "SYNTHETIC-Jürg", "YES", "109100"),
        ("scan", "Eva", None, "109102"),
    ):
        files = [pydicom.dcmread(path) for path in (out / case).rglob("*.dcm")]
        assert len(files) == 4 * SHAPE[2] + 1
        for one in files:
            assert one.get("SyntheticData") == synthetic and one.PatientID == patient
            assert not one.PatientName and not one.PatientBirthDate and not one.PatientSex
            (equipment,) = one.ContributingEquipmentSequence
            assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == purpose
            assert equipment.Manufacturer == "medaug" and equipment.SoftwareVersions
            assert one.ImageType[0] == "DERIVED"
        assert len({one.FrameOfReferenceUID for one in files}) == len({one.StudyInstanceUID for one in files}) == 1
        assert len({one.SeriesInstanceUID for one in files}) == 5
        assert len({one.SOPInstanceUID for one in files}) == len(files)
        first = pydicom.dcmread(out / case / "T1/0001.dcm")
        assert list(first.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]


@pytest.mark.slow
def test_the_same_pair_gives_the_same_bytes_and_another_recipe_other_uids(manifest, tmp_path):
    pairs = only_t1(manifest)
    one, again = export(pairs, tmp_path / "one"), export(pairs, tmp_path / "again")
    other = export(pairs, tmp_path / "other", checkpoint="1" * 64)
    files = sorted(path.relative_to(one) for path in one.rglob("*.dcm"))
    assert len(files) == SHAPE[2] + 1
    for name in files:
        assert (again / name).read_bytes() == (one / name).read_bytes()
    for name in (files[0], files[-1]):
        ours, theirs = pydicom.dcmread(one / name), pydicom.dcmread(other / name)
        assert ours.SOPInstanceUID != theirs.SOPInstanceUID
        assert ours.FrameOfReferenceUID != theirs.FrameOfReferenceUID


def test_dciodvfy_finds_only_what_it_does_not_know_yet(out, tool):
    files = [out / case / name / "0003.dcm" for case in ("pair", "scan") for name in MODALITIES]
    for path in (*files, out / "pair/SEG.dcm", out / "scan/SEG.dcm"):
        message = subprocess.run([tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True).stderr
        errors = [line for line in message.splitlines() if line.startswith("Error") and KNOWN not in line]
        assert errors == [] and (KNOWN in message) == ("pair" in path.parts)


def test_dcm2niix_restores_the_volumes(manifest, out, tool, tmp_path):
    command = [tool("dcm2niix"), "-z", "n", "-b", "n", "-f", "%d", "-o", str(tmp_path)]
    for name, path in zip(MODALITIES, manifest.image_paths(manifest.cases[0]), strict=True):
        subprocess.run([*command, str(out / "pair" / name)], check=True, capture_output=True)
        made, original = (nib.as_closest_canonical(nib.load(file)) for file in (tmp_path / f"{name}.nii", path))
        assert corner_distance(SHAPE, made.affine, original.affine) < 5e-3
        array = np.asanyarray(original.dataobj)
        np.testing.assert_allclose(made.get_fdata(), array, rtol=0, atol=half_steps(array) + 1e-6 * np.abs(array).max())


@pytest.mark.slow
def test_ingest_reads_the_export_back(manifest, out, tmp_path):
    wanted = IngestOptions(root=str(out), rules=str(out / "rules.yaml"), out=str(tmp_path / "back.json"), check="none")
    wanted = replace(wanted, pseudonyms=False, val_fraction=0.0, test_fraction=0.0, workers=1)
    ingest(Options(ingest=wanted))
    back = Manifest.load(tmp_path / "back.json")
    assert back.modalities == MODALITIES and back.schema == SCHEMA
    assert [name[:11] for name in sorted(case.subject for case in back.cases)] == ["Eva", "SYNTHETIC-J"]
    for case in back.cases:
        pairs = [*zip(back.image_paths(case), manifest.image_paths(manifest.cases[0]), strict=True)]
        for ours, path in [*pairs, (back.label_path(case), manifest.label_path(manifest.cases[0]))]:
            made, original = (nib.as_closest_canonical(nib.load(file)) for file in (ours, path))
            array = np.asanyarray(original.dataobj)
            atol = half_steps(array) + 1e-6 * float(np.abs(array).max())
            np.testing.assert_allclose(made.get_fdata(), array, rtol=0, atol=atol if array.dtype.kind == "f" else 0)
            assert corner_distance(SHAPE, made.affine, original.affine) < 5e-3


@pytest.mark.parametrize(
    ("array", "through_zero", "dtype"),
    [
        (np.array([-32768, 32767]), False, np.int16),
        (np.array([0, 65535], np.uint32), False, np.uint16),
        (np.array([3.0, -2.0]), True, np.int16),
        (np.array([0, 70000, 35000, 12345]), False, np.uint16),
        (np.array([1e-7, 3e-7, -2e-9]), False, np.uint16),
        (np.array([-1.5, 0.25, 0.1]), True, np.int16),
        (np.array([0.3, 0.3]), False, np.uint16),
        (np.array([-1.5e38, 1.5e38, 1.0], np.float32), False, np.uint16),
    ],
)
def test_voxels_come_back_within_half_a_step(array, through_zero, dtype):
    stored = Stored.of(array, through_zero)
    slope, intercept = float(stored.slope or 1), float(stored.intercept or 0)
    back = stored.values.astype(np.float64) * slope + intercept
    whole = stored.slope is None
    assert stored.values.dtype == dtype and whole == bool((array == np.rint(array)).all() and np.ptp(array) < 65536)
    assert (
        np.abs(back - array).max() == stored.error <= (0 if whole else slope / 2 * 1.001 + 1e-6 * np.abs(array).max())
    )
    assert not through_zero or intercept == 0


@pytest.mark.parametrize(
    ("name", "modality"),
    [("T1", "MR"), ("FLAIR", "MR"), ("MRI T2", "MR"), ("t1ce", "MR"), ("CT", "CT"), ("PET", "PT"), ("image", "OT")],
)
def test_the_name_of_a_modality_chooses_the_storage_class(name, modality):
    assert kind_of(name).modality == modality


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subject": "x" * 60}, "subject SYNTHETIC-x+: DICOM holds at most 64 printable characters"),
        ({"subject": "a\\b"}, "no backslash; rename it in the manifest"),
        ({"label": "wrong.nii.gz"}, "label values 0.5 are not in the schema"),
        (
            {"label": "ignored.nii.gz"},
            "ignored.nii.gz: holds ignored voxels, which a DICOM SEG cannot mark; give them a",
        ),
        ({"images": ("sheared.nii.gz",)}, "axes are not at right angles, which DICOM cannot describe; resample"),
    ],
)
def test_what_dicom_cannot_hold_gives_one_line(tmp_path, change, reason):
    for name, value, shear in (("sheared", 1, 0.1), ("wrong", 0.5, 0), ("ignored", 9, 0), ("fine", 1, 0)):
        affine = np.eye(4)
        affine[0, 2] = shear
        write_volume(tmp_path / f"{name}.nii.gz", np.full(SHAPE, value, np.float32), affine)
    case = replace(Case("one", ("fine.nii.gz",), "sheared.nii.gz", "s"), **change)
    manifest = Manifest("toy", "", ("MR",), replace(SCHEMA, ignore=9), (case,), str(tmp_path))
    with pytest.raises(UserError, match=reason) as error:
        export(manifest, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_that_exists_stays_as_it_is(manifest, out):
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match="already exists"):
        export(manifest, out)
    assert sorted(out.rglob("*")) == before


def test_a_full_disk_gives_one_line_and_leaves_nothing(manifest, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pydicom.dataset.FileDataset.save_as", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        export(manifest, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
