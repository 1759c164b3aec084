"""Comparison of cases: copies, outliers, swapped modalities, and thinned volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medaug.cohort import Case, LabelSchema, Manifest
from medaug.imaging.intensity import Intensity
from medaug.imaging.nifti import write_volume
from medaug.preflight.cohort import Expectations, compare_cases
from medaug.preflight.facts import CaseFacts, VolumeFacts
from medaug.preflight.files import examine
from medaug.preflight.intensities import find_outliers, profile
from medaug.preflight.twins import signature

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))
FLAT = np.array([-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9, 0.4], np.float32)


def manifest(*cases: Case, modalities: tuple[str, ...] = ("T1",), root: Path = Path(".")) -> Manifest:
    return Manifest("cohort", "", modalities, SCHEMA, cases, str(root))


def case(name: str, subject: str = "", split: str = "train") -> Case:
    return Case(name, (f"{name}.nii.gz",), f"{name}_seg.nii.gz", subject or name, split)


def facts(content: str, values: str = "", label: str = "") -> CaseFacts:
    return CaseFacts(volumes=(VolumeFacts(content, values, FLAT),), label_content=label)


@pytest.mark.parametrize(
    ("subject", "split", "severity"),
    [("b", "test", "error"), ("b", "train", "error"), ("a", "train", "warning")],
)
def test_a_copy_is_an_error_under_another_subject(subject, split, severity):
    cohort = manifest(case("a"), case("b", subject, split), case("c"))
    for second, code in ((facts("x", "v", "l"), "same-content"), (facts("y", "v", "l"), "mirrored-content")):
        (finding,) = compare_cases(cohort, [facts("x", "v", "l"), second, facts("z", "w", "k")])
        assert (finding.case, finding.severity, finding.code) == (
            "b",
            severity,
            code,
        )  # its label is not reported again


def test_many_copies_each_name_the_first():
    cohort = manifest(*(case(name) for name in "abcd"))
    found = list(compare_cases(cohort, [facts("x"), facts("y"), facts("x"), facts("x")]))
    assert [(f.case, f.what) for f in found] == [
        (name, "T1 holds the same voxels as T1 of a, another subject") for name in ("c", "d")
    ]
    assert list(compare_cases(cohort, [CaseFacts()] * 4)) == []


def test_the_same_label_on_two_images_is_a_warning():
    found = list(compare_cases(manifest(case("a"), case("b")), [facts("x", label="l"), facts("y", label="l")]))
    assert [(f.case, f.severity, f.code) for f in found] == [("b", "warning", "same-label")]


def judge(table: np.ndarray, modalities: tuple[str, ...]) -> list[tuple[str, str, str]]:
    names = [f"case_{index}" for index in range(len(table))]
    return [(f.case, f.code, f.what.split(" ")[0]) for f in find_outliers(names, modalities, list(map(list, table)))]


def test_outliers_and_swapped_modalities_are_reported():
    rng = np.random.default_rng(0)
    kinds = np.stack([FLAT, np.clip(FLAT - 0.5, -1, 1), np.clip(FLAT + 0.3, -1, 1)])
    kinds[:, -1] = 0.4
    table = np.tile(kinds, (14, 1, 1)) + rng.normal(0, 0.02, (14, 3, 8))
    modalities = ("T1", "T2", "FLAIR")
    assert judge(table, modalities) == []
    table[3, [0, 1]] = table[3, [1, 0]]
    table[6, 2, :7] = -1
    table[9, 1, -1] = 1.4
    assert judge(table, modalities) == [
        ("case_3", "modalities-swapped", "T1"),
        ("case_6", "unlike-cohort", "FLAIR"),
        ("case_9", "unlike-cohort", "T2"),
    ]
    assert judge(table[:9], modalities) == []  # nine scans are too few
    unread = [list(row) for row in table]
    for index in range(5):
        unread[index][1] = None
    names = [f"case_{index}" for index in range(14)]
    found = [(f.case, f.what.split(" ")[0]) for f in find_outliers(names, modalities, unread)]
    assert ("case_6", "FLAIR") in found and "T2" not in dict(found).values()  # only nine scans have T2


def test_another_sequence_is_found_among_very_similar_scans():
    # Quantiles of a made-up head in T1 and in T2, 10 spreads and 0.31 apart.
    t1 = np.array([-0.74, -0.54, -0.28, 0.68, 0.91, 0.95, 1, 0.38])
    t2 = np.array([-0.84, -0.55, -0.33, -0.28, 0.05, 0.8, 1, 0.41])
    table = np.tile(t1, (14, 1, 1)) + np.random.default_rng(0).normal(0, 0.01, (14, 1, 8))
    table[3, 0] = t2
    assert judge(table, ("T1",)) == [("case_3", "unlike-cohort", "T1")]


def test_a_cohort_of_equal_scans_has_no_outlier():
    table = np.tile(FLAT, (20, 1, 1))
    table[4] += 0.3
    assert judge(table, ("T1",)) == []


def test_the_profile_of_a_known_distribution():
    # A ramp has its quantiles at equal steps, and each axis but one is constant.
    ramp = np.broadcast_to(np.arange(1001.0)[:, None, None], (1001, 3, 3))
    everywhere = np.ones(ramp.shape, bool)
    found = profile(ramp, everywhere, Intensity("window", window=(0, 1000)))
    np.testing.assert_allclose(found[:7], [-0.96, -0.8, -0.5, 0, 0.5, 0.8, 0.96], atol=1e-6)
    assert found[7] == pytest.approx((0.002 / 3) / 0.5, rel=2e-3)  # mean step over mean deviation
    noise = np.random.default_rng(0).normal(size=(40, 40, 40))
    found = profile(noise, np.ones(noise.shape, bool), Intensity("percentile", (0, 100)))
    assert found[7] == pytest.approx(np.sqrt(2), rel=0.02)  # E|a - b| over E|a - mean| of a normal distribution


@pytest.mark.slow
def test_large_volumes_are_thinned_and_labels_found_where_they_lie(tmp_path):
    shape = (300, 260, 12)
    image = np.zeros(shape, np.int16)
    image[60:240, 50:210, 1:11] = np.random.default_rng(0).integers(500, 900, (180, 160, 10))
    inside, outside = np.zeros((2, *shape), np.uint8)
    inside[101, 101, 5] = 1  # between the voxels that are kept
    outside[299, 259, 11] = 1
    write_volume(tmp_path / "image.nii.gz", image, np.eye(4))
    write_volume(tmp_path / "inside.nii.gz", inside, np.eye(4))
    write_volume(tmp_path / "outside.nii.gz", outside, np.eye(4))
    for label, expected in (("inside", []), ("outside", ["label-outside-body"])):
        scan = Case("case", ("image.nii.gz",), f"{label}.nii.gz", "p")
        findings, facts = examine(manifest(root=tmp_path), True, Intensity(), {}, scan)
        assert [finding.code for finding in findings] == expected
        assert facts.classes == {"background", "lesion"}


def test_one_volume_stored_along_other_axes_has_one_content(tmp_path):
    array = np.random.default_rng(0).integers(0, 900, (9, 10, 11)).astype("i2")
    write_volume(tmp_path / "a.nii.gz", array, np.eye(4))
    write_volume(tmp_path / "b.nii.gz", array[::-1, ::-1].astype("f4"), np.diag([-1, -1, 1, 1]))
    write_volume(tmp_path / "c.nii.gz", array[::-1], np.eye(4))
    write_volume(tmp_path / "d.nii.gz", array[::-1] + (array[::-1] == 5), np.eye(4))
    cohort = manifest(root=tmp_path)
    a, b, c, d = (
        examine(cohort, True, Intensity(), {}, replace(case(name), label=None))[1].volumes[0] for name in "abcd"
    )
    assert a.content == b.content and a.values == b.values == c.values
    assert len({a.content, c.content, d.content}) == 3 and d.values != a.values


@pytest.mark.slow
def test_likely_twins_are_an_error_until_subjects_are_named():
    rng = np.random.default_rng(0)
    scans = [ndimage.gaussian_filter(rng.normal(size=(32, 32, 32)), 3) for _ in range(12)]
    scans[7] = scans[2] * 3 + 1 + rng.normal(0, 1e-4, (32, 32, 32))
    cohort = manifest(*(case(f"case_{index}") for index in range(12)))
    signed = [CaseFacts(signature=signature(scan.astype("f4"), np.eye(4))) for scan in scans]
    for expected, severity in ((Expectations(), "warning"), (Expectations(subjects_named=False), "error")):
        (finding,) = compare_cases(cohort, signed, expected)
        assert (finding.code, finding.severity) == ("likely-same-subject", severity)
    # Names like BraTS-GLI-00005-100 contain the subject.
    message = replace(cohort, cases=(replace(cohort.cases[0], subject="person"), *cohort.cases[1:]))
    (finding,) = compare_cases(message, signed, Expectations(subjects_named=False))
    assert finding.severity == "warning"
