"""Which subjects and scans models saw, over several trainings."""

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen

SPLITS = {"A": "train", "B": "train", "V": "val", "T": "test", "U": "test"}
CASES = tuple(Case(f"{s}_1", (f"{s}.nii.gz",), f"{s}_label.nii.gz", s, split) for s, split in SPLITS.items())
COHORT = Manifest("toy", "", ("T1",), LabelSchema(((0, "background"), (1, "lesion"))), CASES, "/nowhere")
SAW = Seen({"train": ["A", "B"], "val": ["V"]}, frozenset({"a", "b"}))


def test_the_union_of_two_trainings():
    both = SAW | Seen({"train": ["C"], "test": ["T"]}, frozenset({"c"}))
    assert both == Seen({"test": ["T"], "train": ["A", "B", "C"], "val": ["V"]}, frozenset("abc"))
    assert SAW | Seen({}) == SAW


def test_test_subjects_seen_in_any_split_are_listed():
    assert SAW.test_subjects(COHORT) == []
    for split in ("train", "val", "test"):
        assert (SAW | Seen({split: ["U"]})).test_subjects(COHORT) == ["U"]


def test_training_subjects_outside_a_split_are_listed():
    assert SAW.trained_outside({"A", "B"}) == []
    assert SAW.trained_outside({"B"}) == ["A"]
    assert SAW.trained_outside(()) == ["A", "B"]  # V was seen for selection only


def test_scans_are_recognised_by_the_content_of_their_images_only():
    contents = {"A_1": ["x", "label"], "T_1": ["a", "label"], "U_1": ["y", "b"]}
    assert [case.name for case in SAW.scans(COHORT.cases, contents)] == ["T_1"]
