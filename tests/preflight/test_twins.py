"""One subject under two names: found in the hippocampus task and in planted copies, but not among different scans."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medaug.imaging.reading import read_volume
from medaug.preflight.twins import Signature, likely_same_subject, signature

AFFINE = np.eye(4)


def _scan(seed: int, shape: tuple[int, int, int] = (36, 40, 34)) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return np.rint(400 + 100 * field / field.std()).clip(0)


STORED = _scan(0, (12, 12, 12))


def _found(volumes: list[np.ndarray], subjects: list[str] | None = None) -> list[tuple[str, str]]:
    names = [f"case_{chr(97 + i)}" for i in range(len(volumes))]
    findings = likely_same_subject(names, subjects or names, [signature(v, AFFINE) for v in volumes])
    return [(f.case, re.search(r"as (\S+):", f.what)[1]) for f in findings]  # type: ignore[index]


@settings(max_examples=30)
@given(st.floats(0.013, 9000), st.floats(-1e4, 1e4))
def test_the_step_of_scaled_integers_is_found(step: float, offset: float) -> None:
    found = signature(STORED * step + offset, AFFINE).step
    assert found == 0 or found == pytest.approx(step, rel=1e-6)  # 0: a round step


@pytest.mark.parametrize("step", [5.958970, 0.0137219, 2653.4419, 1.0731])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_uneven_step_is_found(step: float, dtype: type) -> None:
    assert signature((STORED * step).astype(dtype), AFFINE).step == pytest.approx(step, rel=3e-7)


@pytest.mark.parametrize("step", [1, 2, 0.5, 0.1, 1 / 255, 25])
def test_a_round_step_is_not_distinctive(step: float) -> None:
    assert signature(_scan(0) * step, AFFINE).step == 0


def test_values_off_any_lattice_have_no_step() -> None:
    assert signature(np.random.default_rng(0).normal(size=(20, 20, 20)), AFFINE).step == 0


def test_two_crops_of_one_scan_share_their_step() -> None:
    left, right = _scan(1) * 3.14159, _scan(2) * 3.14159  # other content, one scale
    others = [_scan(seed) * (3.2 + 0.1111 * seed) for seed in range(3, 9)]
    assert _found([left, *others, right]) == [("case_a", "case_h")]
    assert _found([left, *others, right], [*"ABCDEFG", "A"]) == []


def test_a_step_that_many_scans_share_is_ignored() -> None:
    assert _found([_scan(seed) * 3.14159 for seed in range(8)]) == []


@pytest.mark.parametrize(
    "copy",
    [
        lambda a: a.copy(),
        lambda a: a[::-1],
        lambda a: np.pad(a, ((4, 0), (0, 3), (2, 2))),
        lambda a: a**0.8,
        lambda a: a[::-1] + np.random.default_rng(5).normal(0, 5, a.shape),
    ],
    ids=["copied", "mirrored", "padded", "brightened", "mirrored with noise"],
)
def test_a_copy_is_found_among_different_scans(copy) -> None:  # type: ignore[no-untyped-def]
    scans = [_scan(seed) for seed in range(9)]
    assert _found([*scans, copy(scans[4])]) == [("case_e", "case_j")]


def test_different_scans_are_not_paired() -> None:
    assert _found([_scan(seed) for seed in range(12)]) == []


def test_the_axes_of_the_array_do_not_matter() -> None:
    scans = [_scan(seed) for seed in range(9)]
    turned = np.array([[0, 0, -1.0, 33], [-1, 0, 0, 35], [0, 1, 0, 0], [0, 0, 0, 1]])
    signatures = [signature(v, AFFINE) for v in scans]
    # The same scan with other array axes: i, j, k run along -y, z, -x.
    same = np.transpose(scans[2][::-1, :, ::-1], (0, 1, 2))
    flipped = np.diag([-1.0, 1, -1, 1])
    flipped[:3, 3] = [35, 0, 33]
    findings = likely_same_subject([*"abcdefghi", "j"], [*"abcdefghi", "j"], [*signatures, signature(same, flipped)])
    assert [f.case for f in findings] == ["c"] and "mirrored" not in findings[0].what
    assert signature(scans[0], turned).coarse.shape == signatures[0].coarse.shape


def test_numbering_is_inferred_from_the_pairs_found() -> None:
    names = [f"scan_{number:02d}" for number in range(1, 13)]
    blank = np.zeros((32, 32, 32), np.float32)
    steps = [3.3333337, 3.3333337, 4.1234567, 4.1234567, 5.7654321, 5.7654321, *[0.0] * 6]
    findings = likely_same_subject(names, names, [Signature(step, blank) for step in steps])
    assert [f.case for f in findings] == names[::2]
    assert sum("by their numbers" in f.what for f in findings) == 3
    assert all("subject_consecutive=2" in f.remedy for f in findings)
    # Two recognised pairs are too few for a rule.
    fewer = likely_same_subject(names, names, [Signature(step, blank) for step in [*steps[:4], *[0.0] * 8]])
    assert [f.case for f in fewer] == names[:4:2]


@pytest.mark.slow
def test_the_two_sides_of_each_person_in_the_hippocampus_task(medaug_data: Path) -> None:
    paths = sorted((medaug_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))
    names = [path.name.removesuffix(".nii.gz") for path in paths]
    volumes = [read_volume(path) for path in paths]
    signatures = [signature(volume.array, volume.affine) for volume in volumes]
    subjects = [str((int(name[-3:]) + 1) // 2) for name in names]
    truth = {(a, b) for a, b, s, t in zip(names, names[1:], subjects, subjects[1:], strict=False) if s == t}
    found = likely_same_subject(names, names, signatures)
    assert len(paths) - len(set(subjects)) == len(truth) == 68
    assert {(f.case, re.search(r"as (\S+):", f.what)[1]) for f in found} == truth  # type: ignore[index]
    assert likely_same_subject(names, subjects, signatures) == []
