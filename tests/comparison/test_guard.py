"""Leaks, planted one at a time in a benchmark without leaks."""

from __future__ import annotations

import dataclasses

import pytest

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.comparison.guard import refuse_leaks
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.training.checkpoint import Base, Card

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))
SPLITS = {"train": ["A", "B", "C"], "val": ["V"], "test": ["T", "U"]}


def manifest(cases) -> Manifest:
    return Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), "/nowhere")


COHORT = manifest(
    Case(f"{s}_{i}", (f"{s}_{i}.nii.gz",), None, s, split)
    for split, names in SPLITS.items()
    for s in names
    for i in "12"
)
PAIRS = manifest(Case(f"pair_{i}", (f"p{i}.nii.gz",), "l.nii.gz", SPLITS["train"][i], "train") for i in range(3))
RECORDS = [{"name": c.name, "checkpoint": "sum", "subjects": [c.subject]} for c in PAIRS.cases]
CARD = Card("toy", {}, Preprocessing((8, 8, 8), None, (0.0, 100.0)), SCHEMA, ("T1",), {}, False)
SAW = {"train": SPLITS["train"], "val": SPLITS["val"]}


def check(cohort=COHORT, pairs=PAIRS, records=RECORDS, saw=SAW, checkpoint="sum"):
    refuse_leaks(cohort, pairs, records, Seen(saw), checkpoint)


def changed(index, **values):
    return [record | values if i == index else record for i, record in enumerate(RECORDS)]


def test_a_benchmark_without_leaks_passes():
    check()
    check(records=changed(1, subjects=["A", "B"]))  # made from two people, both for training
    check(records=[*RECORDS, {"name": "discarded", "checkpoint": "old", "subjects": ["T"]}])  # not trained on


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_test_subject_that_the_generator_saw(split):
    with pytest.raises(UserError, match=r"the generator saw test subject\(s\) T; train it again"):
        check(saw=SAW | {split: [*SAW[split], "T"]})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_test_subject_that_the_base_of_the_generator_saw(split):
    base = Base("base", "sum", {"train": ["A"], "val": []} | {split: ["U"]})
    card = dataclasses.replace(CARD, subjects=SAW, base=base)
    with pytest.raises(UserError, match=r"the generator saw test subject\(s\) U"):
        check(saw=card.seen.subjects)
    check(saw=dataclasses.replace(card, base=None).seen.subjects)


def test_a_validation_subject_that_the_generator_trained_on():
    with pytest.raises(UserError, match=r"the generator trained on validation subject\(s\) V"):
        check(saw=SAW | {"train": [*SAW["train"], "V"]})


@pytest.mark.parametrize("subject", ["T", "V", "stranger"])
@pytest.mark.parametrize("subjects", [("{}",), ("A", "{}")])
def test_a_pair_not_made_from_a_training_subject(subject, subjects):
    with pytest.raises(UserError, match=f"leak: pair_1 was made from {subject}, not a training subject"):
        check(records=changed(1, subjects=[s.format(subject) for s in subjects]))


@pytest.mark.parametrize("records", [RECORDS[:2], changed(2, name="pair_9"), changed(2, subjects=[]), []])
def test_a_pair_without_provenance(records):
    with pytest.raises(UserError, match=r"pair_\d has no provenance"):
        check(records=records)


def test_a_pair_of_another_checkpoint():
    with pytest.raises(UserError, match="pair_0 was made by another checkpoint"):
        check(records=changed(0, checkpoint="older"))
    with pytest.raises(UserError, match="made by another checkpoint"):
        check(checkpoint="newer")


def test_a_split_that_changed_after_training():
    swapped = {"A": "test", "T": "train"}
    cases = (dataclasses.replace(c, split=swapped.get(c.subject, c.split)) for c in COHORT.cases)
    with pytest.raises(UserError, match=r"saw test subject\(s\) A"):
        check(cohort=manifest(cases))


def test_many_subjects_are_counted_not_listed():
    with pytest.raises(UserError) as error:
        check(saw={"train": [f"S{i}" for i in range(9)], "val": []}, cohort=everybody_in_test())
    assert "S0, S1, S2 and 6 more" in str(error.value) and "\n" not in str(error.value)


def everybody_in_test():
    return manifest(Case(f"S{i}", ("a.nii.gz",), None, f"S{i}", "test") for i in range(9))


def test_a_mask_generator_that_saw_a_test_subject():
    check(records=changed(1, subjects=["A", "B", "C"], mask_validation_subjects=["V"]))
    with pytest.raises(UserError, match=r"leak: the mask generator of pair_1 saw test subject\(s\) T"):
        check(records=changed(1, mask_validation_subjects=["V", "T"]))
    with pytest.raises(UserError, match="leak: pair_1 was made from T"):
        check(records=changed(1, subjects=["A", "T"]))
