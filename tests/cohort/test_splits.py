"""Splits: by subject, independent of the order of cases, and with the requested numbers."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medaug.cohort import Case, Manifest
from medaug.cohort.splits import assign_splits, subject_of
from medaug.errors import UserError


def _cases(counts: list[int]) -> list[Case]:
    return [
        Case(f"case_{subject}_{scan}", (f"{subject}_{scan}.nii.gz",), None, f"subject_{subject}")
        for subject, count in enumerate(counts)
        for scan in range(count)
    ]


@given(
    counts=st.lists(st.integers(1, 4), min_size=5, max_size=40),
    val=st.sampled_from([0.0, 0.01, 0.1, 0.25]),
    test=st.sampled_from([0.0, 0.01, 0.2, 0.3]),
    seed=st.integers(0, 2**32),
    order=st.integers(0, 100),
)
def test_split_properties(counts: list[int], val: float, test: float, seed: int, order: int) -> None:
    cases = _cases(counts)
    result = assign_splits(cases, val, test, seed)
    assert [case.name for case in result] == [case.name for case in cases]

    splits: dict[str, set[str]] = {}
    for case in result:
        splits.setdefault(case.subject, set()).add(case.split)
    assert all(len(found) == 1 for found in splits.values())

    sizes = {name: sum(found == {name} for found in splits.values()) for name in ("train", "val", "test")}
    for name, fraction in (("val", val), ("test", test)):
        assert abs(sizes[name] - fraction * len(counts)) <= 1
        assert (sizes[name] > 0) == (fraction > 0)
    assert sizes["train"] > 0

    shuffled = random.Random(order).sample(cases, len(cases))
    assert set(assign_splits(shuffled, val, test, seed)) == set(result)


def test_the_seed_matters_and_the_result_is_stable() -> None:
    cases = _cases([1] * 10)
    by_seed = {seed: tuple(c.split for c in assign_splits(cases, 0.2, 0.2, seed)) for seed in range(20)}
    assert len(set(by_seed.values())) > 10
    # Committed manifests depend on these ranks: they may never change between versions.
    assert [c.name for c in assign_splits(cases, 0.2, 0.2, 0) if c.split == "test"] == [
        "case_0_0",
        "case_9_0",
    ]


def test_the_committed_manifest_is_reproduced() -> None:
    committed = Manifest.load(Path(__file__).parents[2] / "data_manifests/hippocampus.json").cases
    forgotten = [replace(case, split="train") for case in committed]
    assert assign_splits(forgotten, 0.1, 0.2, 0) == committed
    alike = {case.name: frozenset({"Anterior", "Posterior"}) for case in committed}
    assert assign_splits(forgotten, 0.1, 0.2, 0, alike) == committed


KINDS = [None, frozenset[str](), frozenset({"a"}), frozenset({"a", "b"})]


@given(
    kinds=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=8, max_size=60),
    val=st.sampled_from([0.0, 0.1, 0.25]),
    test=st.sampled_from([0.0, 0.2, 0.3]),
    seed=st.integers(0, 1000),
    order=st.integers(0, 100),
)
def test_each_stratum_contributes_its_share(
    kinds: list[list[int]], val: float, test: float, seed: int, order: int
) -> None:
    cases = _cases([len(own) for own in kinds])
    strata = {case.name: KINDS[kind] for case, kind in zip(cases, sum(kinds, []), strict=True)}
    result = assign_splits(cases, val, test, seed, strata)
    split = {case.subject: case.split for case in result}
    assert all(split[case.subject] == case.split for case in result)

    plain = Counter({case.subject: case.split for case in assign_splits(cases, val, test, seed, None)}.values())
    totals = Counter(split.values())
    assert totals == plain  # strata change which subjects a split has, not how many

    def union(own: list[int]) -> frozenset[str] | None:
        present = [KINDS[kind] for kind in own if KINDS[kind] is not None]
        return frozenset().union(*present) if present else None  # type: ignore[arg-type]

    stratum = {f"subject_{index}": union(own) for index, own in enumerate(kinds)}
    left = totals["train"] + totals["val"]
    for members in ([s for s in stratum if stratum[s] == kind] for kind in set(stratum.values())):
        got = Counter(split[subject] for subject in members)
        assert abs(got["test"] - totals["test"] * len(members) / len(stratum)) < 1
        assert abs(got["val"] - totals["val"] * (len(members) - got["test"]) / left) < 1

    shuffled = random.Random(order).sample(cases, len(cases))
    assert set(assign_splits(shuffled, val, test, seed, strata)) == set(result)


def test_labelled_and_unlabelled_subjects_are_separate_strata() -> None:
    cases = [replace(c, label="x" if i % 4 == 0 else None) for i, c in enumerate(_cases([1] * 40))]
    result = assign_splits(cases, 0.2, 0.2, 5)
    assert Counter((c.split, c.label is None) for c in result) == {
        ("train", True): 18,
        ("train", False): 6,
        ("val", True): 6,
        ("val", False): 2,
        ("test", True): 6,
        ("test", False): 2,
    }


def test_more_scans_of_the_same_subjects_change_no_split() -> None:
    one_scan = {c.subject: c.split for c in assign_splits(_cases([1] * 12), 0.1, 0.2, 3)}
    two_scans = {c.subject: c.split for c in assign_splits(_cases([2] * 12), 0.1, 0.2, 3)}
    assert one_scan == two_scans


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.2, 0.9), (math.nan, 0.2), (0.1, math.nan)])
def test_impossible_fractions(val: float, test: float) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        assign_splits(_cases([1] * 10), val, test, 0)


def test_too_few_subjects() -> None:
    with pytest.raises(UserError, match="2 subjects are too few"):
        assign_splits(_cases([5, 5]), 0.1, 0.1, 0)


@pytest.mark.parametrize(
    ("name", "pattern", "consecutive", "subject"),
    [
        ("case_7", None, 1, "case_7"),
        ("BraTS-GLI-00005-101", r"(BraTS-GLI-\d+)-\d+", 1, "BraTS-GLI-00005"),
        ("hippocampus_001", r"hippocampus_(\d+)", 2, "hippocampus_subject_001"),
        ("hippocampus_002", r"hippocampus_(\d+)", 2, "hippocampus_subject_001"),
        ("hippocampus_003", r"hippocampus_(\d+)", 2, "hippocampus_subject_002"),
        ("hippocampus_394", r"hippocampus_(\d+)", 2, "hippocampus_subject_197"),
    ],
)
def test_subject_of(name: str, pattern: str | None, consecutive: int, subject: str) -> None:
    assert subject_of(name, pattern, consecutive) == subject


@pytest.mark.parametrize(
    ("pattern", "consecutive", "reason"),
    [
        (r"(", 1, "not a regular expression"),
        (r"liver_(\d+)", 1, "no group 1"),
        (r"case_\d+", 1, "no group 1"),
        (r"(case)_", 2, "not a number"),
    ],
)
def test_bad_subject_patterns_are_refused(pattern: str | None, consecutive: int, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        subject_of("case_7", pattern, consecutive)
