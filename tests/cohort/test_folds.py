"""Folds and hidden labels: by subject, nested, and independent of the order of cases."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medaug.cohort import Case
from medaug.cohort.folds import hide_labels, hold_out_fold, kfold, splits_final
from medaug.errors import UserError

# Per subject: the split, and for each of its scans whether it has a label.
SUBJECTS = st.lists(
    st.tuples(st.sampled_from(["train", "val", "test"]), st.lists(st.booleans(), min_size=1, max_size=3)),
    min_size=1,
    max_size=40,
)


def _cases(subjects: list[tuple[str, list[bool]]]) -> list[Case]:
    return [
        Case(f"case_{n}_{scan}", ("i",), "l" if labelled else None, f"subject_{n}", split)
        for n, (split, scans) in enumerate(subjects)
        for scan, labelled in enumerate(scans)
    ]


@given(subjects=SUBJECTS, k=st.integers(2, 6), seed=st.integers(0, 1000), order=st.integers(0, 100))
def test_fold_properties(subjects: list[tuple[str, list[bool]]], k: int, seed: int, order: int) -> None:
    cases = _cases(subjects)
    inside = {case.subject: False for case in cases if case.split != "test"}
    if len(inside) < k:
        with pytest.raises(UserError, match=f"folds={k}: only {len(inside)} subjects"):
            kfold(cases, k, seed)
        return
    folds = kfold(cases, k, seed)
    assert folds.keys() == inside.keys() and set(folds.values()) == set(range(k))
    for case in cases:
        if case.subject in inside:
            inside[case.subject] |= case.label is not None
    for members in (folds, [s for s in inside if inside[s]], [s for s in inside if not inside[s]]):
        sizes = Counter({fold: 0 for fold in range(k)}) + Counter()
        sizes.update(folds[subject] for subject in members)
        counts = [sizes[fold] for fold in range(k)]
        assert max(counts) - min(counts) <= 1
    assert kfold(random.Random(order).sample(cases, len(cases)), k, seed) == folds

    validated: list[str] = []
    labelled = {case.name for case in cases if case.label is not None and case.split != "test"}
    used = {folds[case.subject] for case in cases if case.name in labelled}
    exported = splits_final(cases, k, seed) if len(used) == k else None
    for fold in range(k):
        result = hold_out_fold(cases, k, fold, seed)
        assert [case.name for case in result] == [case.name for case in cases]
        assert [c.name for c in result if c.split == "test"] == [c.name for c in cases if c.split == "test"]
        val = {case.subject for case in result if case.split == "val"}
        assert val == {subject for subject, number in folds.items() if number == fold}
        assert val.isdisjoint(case.subject for case in result if case.split == "train")
        validated += sorted(val)
        for name in ("train", "val"):
            wanted = {case.name for case in result if case.split == name} & labelled
            assert exported is None or exported[fold][name] == sorted(wanted)
    assert sorted(validated) == sorted(inside)


def test_given_strata_are_divided_evenly() -> None:
    cases = _cases([("train", [True])] * 12)
    strata = {case.name: frozenset({"rare"} if n < 4 else {"common"}) for n, case in enumerate(cases)}
    folds = kfold(cases, 4, 0, strata)
    assert sorted(folds[f"subject_{n}"] for n in range(4)) == [0, 1, 2, 3]


def test_the_folds_are_stable() -> None:
    # Results of cross-validation refer to these folds: they may never change between versions.
    # `printf 0:subject_N | sha256sum` ranks the subjects 0 2 1 3 4 5.
    folds = kfold(_cases([("train", [True])] * 6), 3, 0)
    assert [folds[f"subject_{n}"] for n in (0, 2, 1, 3, 4, 5)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("k", "fold", "reason"),
    [
        (3, 3, "fold=3: there are folds 0 to 2"),
        (3, -1, "fold=-1: there are"),
    ],
)
def test_impossible_folds_are_refused(k: int, fold: int, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        hold_out_fold(_cases([("train", [True])] * 6), k, fold, 0)


def test_folds_for_nnunet_need_labelled_subjects() -> None:
    cases = _cases([("train", [index < 2]) for index in range(9)])
    assert all(fold["train"] and fold["val"] for fold in splits_final(cases, 2, 0))
    with pytest.raises(UserError, match="folds=3: the labelled subjects outside the test split fill only 2;"):
        splits_final(cases, 3, 0)


@given(subjects=SUBJECTS, seed=st.integers(0, 1000), order=st.integers(0, 100), data=st.data())
def test_hidden_label_properties(
    subjects: list[tuple[str, list[bool]]], seed: int, order: int, data: st.DataObject
) -> None:
    cases = _cases(subjects)
    labelled = {case.subject for case in cases if case.split == "train" and case.label is not None}
    if not labelled:
        with pytest.raises(UserError, match="labelled=1: no training subject has a label; "):
            hide_labels(cases, 1, seed)
        return
    large = data.draw(st.integers(1, len(labelled)))
    small = data.draw(st.integers(1, large))

    def kept(num: int, of: list[Case]) -> set[str]:
        result = hide_labels(of, num, seed)
        for before, after in zip(of, result, strict=True):
            assert after == before or after == replace(before, label=None)
            if before.split != "train":
                assert after == before
        seen = {case.subject for case in result if case.split == "train" and case.label is not None}
        # All labels of a kept subject are kept.
        assert all(a == b for a, b in zip(of, result, strict=True) if b.subject in seen)
        return seen

    assert len(kept(large, cases)) == large
    assert kept(small, cases) <= kept(large, cases)
    assert kept(small, random.Random(order).sample(cases, len(cases))) == kept(small, cases)
    assert hide_labels(cases, len(labelled), seed) == tuple(cases)


def test_another_seed_keeps_other_labels() -> None:
    cases = _cases([("train", [True])] * 20)
    choices = {tuple(c.label for c in hide_labels(cases, 5, seed)) for seed in range(10)}
    assert len(choices) > 5


@pytest.mark.parametrize("num", [0, -1, 4])
def test_too_few_labelled_subjects(num: int) -> None:
    cases = _cases([("train", [True])] * 3 + [("train", [False])] * 5 + [("test", [True])] * 9)
    with pytest.raises(UserError, match=f"labelled={num}: 3 training subjects have labels; choose 1 to 3"):
        hide_labels(cases, num, 0)
