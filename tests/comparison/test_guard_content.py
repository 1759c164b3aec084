"""Leaks that names do not show: files of a finished run are swapped, one at a time, and each is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.comparison.external import read_external, refuse_external_leaks
from medaug.comparison.guard import guarded_cohort
from medaug.data.cases import load_cases
from medaug.data.contents import case_contents, cohort_digest, refuse_copies
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.imaging.nifti import write_volume
from medaug.synthesis.pairs import Pairs, pairs_digest
from medaug.training.checkpoint import Base, Card

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))
SPLITS = {"A": "train", "B": "train", "V": "val", "T": "test", "U": "test"}
SPACE = Preprocessing((8, 8, 8), None, (0.0, 100.0))
CARD = Card("toy", {}, SPACE, SCHEMA, ("T1",), {"train": ["A", "B"], "val": ["V"]}, False)


class Loop:
    """A cohort, what a training read of it, and two pairs."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.data, self.train, self.synthetic = root / "data", root / "run" / "train", root / "run" / "synthetic"
        for name in SPLITS:
            label = (rng.random((8, 8, 8)) < 0.2).astype(np.uint8)
            write_volume(self.data / f"{name}.nii.gz", rng.integers(0, 900, (8, 8, 8)).astype(np.int16), np.eye(4))
            write_volume(self.data / f"{name}_seg.nii.gz", label, np.eye(4))
        cases = [Case(f"{s}_1", (f"{s}.nii.gz",), f"{s}_seg.nii.gz", s, split) for s, split in SPLITS.items()]
        self.cohort = Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), str(self.data))
        self.cohort.save(self.train / "manifest.json")
        seen = [case for case in cases if case.split != "test"]
        self.card = replace(CARD, contents=case_contents(self.cohort, seen, root / "run" / "cache"))
        for index, subject in enumerate("AB"):
            files = (f"imagesTr/p{index}.nii.gz", f"labelsTr/p{index}.nii.gz")
            write_volume(self.synthetic / files[0], rng.integers(0, 900, (8, 8, 8)).astype(np.int16), np.eye(4))
            (self.synthetic / "labelsTr").mkdir(exist_ok=True)
            shutil.copy(self.data / f"{subject}_seg.nii.gz", self.synthetic / files[1])
            recipe = Recipe(index, 0, f"{subject}_1", subject, "real", {}, 1.0, "ddim", 1, 0.0, index, "sum")
            contents = {file: file_sha256(self.synthetic / file) for file in files}
            about = {"name": f"p{index}", "images": [files[0]], "label": files[1], "region": [[0, 8]] * 3}
            record = recipe.to_mapping() | about | {"subjects": [subject], "contents": contents}
            provenance.append(self.synthetic / "provenance.jsonl", record)
        self.finish()

    def finish(self) -> None:
        """Finish the pairs with the records that exist."""
        manifest = Pairs.collect(self.card, self.synthetic, 2).manifest
        manifest.save(self.synthetic / "manifest.json")
        records = list(provenance.read_all(self.synthetic).values())
        digest = pairs_digest(manifest, records)
        (self.synthetic / "finished.json").write_text(json.dumps({"digest": digest}))

    def check(self, card: Card | None = None) -> str:
        return guarded_cohort(self.train, Pairs.load(self.synthetic), card or self.card, "sum")[1]

    def without_digests(self) -> None:
        """A run as an earlier version wrote it."""
        path = self.synthetic / "provenance.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in x.items() if k not in NEW}) + "\n" for x in lines))
        (self.synthetic / "finished.json").write_text("{}")
        self.card = replace(self.card, contents={})


NEW = {"digest", "contents"}


@pytest.fixture
def loop(tmp_path) -> Loop:
    loop = Loop(tmp_path)
    loop.check()
    return loop


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_training_scans_own_files_listed_as_a_test_case(loop, split):
    source = {"train": "A", "val": "V"}[split]
    cases = [replace(c, images=(f"{source}.nii.gz",)) if c.subject == "T" else c for c in loop.cohort.cases]
    replace(loop.cohort, cases=tuple(cases)).save(loop.train / "manifest.json")
    with pytest.raises(UserError, match=rf"leak: T_1 \(test\) holds the scan of {source}_1 \({split}\)"):
        loop.check()


def test_a_copy_of_a_training_scan_in_the_place_of_a_test_scan(loop):
    shutil.copy(loop.data / "B.nii.gz", loop.data / "U.nii.gz")
    with pytest.raises(UserError, match=r"leak: U_1 \(test\) holds the scan of B_1 \(train\)"):
        loop.check()


def test_a_training_and_a_test_scan_swapped_after_training(loop):
    one, other = loop.data / "A.nii.gz", loop.data / "T.nii.gz"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(UserError, match="A_1: its files are not those that the generator was trained on"):
        loop.check()
    with pytest.raises(UserError, match="leak: the generator saw the test scan T_1 under another name"):
        contents = case_contents(loop.cohort, loop.cohort.cases, loop.data)
        loop.card.seen.refuse_test_scans("the generator", loop.cohort, contents)


def test_what_the_base_of_the_generator_read_counts_as_seen(loop):
    read = [file_sha256(loop.data / "T.nii.gz")]
    base = Base("base", "sum", {"train": ["someone"], "val": []}, read)
    with pytest.raises(UserError, match="leak: the generator saw the test scan T_1 under another name"):
        loop.check(replace(loop.card, base=base))
    assert Card.from_dict(replace(loop.card, base=base).to_dict()) == replace(loop.card, base=base)


def test_a_label_that_changed_after_the_training(loop):
    shutil.copy(loop.data / "T_seg.nii.gz", loop.data / "B_seg.nii.gz")
    with pytest.raises(UserError, match="B_1: its files are not those that the generator was trained on"):
        loop.check()


@pytest.mark.parametrize("subject", ["V", "T"])
@pytest.mark.parametrize("old", [False, True])
def test_a_pair_replaced_by_a_held_out_scan(loop, subject, old):
    if old:
        loop.without_digests()
    shutil.copy(loop.data / f"{subject}.nii.gz", loop.synthetic / "imagesTr" / "p1.nii.gz")
    with pytest.raises(UserError, match=rf"leak: p1 is the scan of {subject}_1 \({SPLITS[subject]}\)"):
        loop.check()


def test_labels_of_two_pairs_swapped(loop):
    one, other = loop.synthetic / "labelsTr" / "p0.nii.gz", loop.synthetic / "labelsTr" / "p1.nii.gz"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(UserError, match="labelsTr/p0.nii.gz: is not the file of p0 that was generated"):
        loop.check()


def test_another_subject_for_a_host_in_a_record_without_a_digest(loop):
    loop.without_digests()
    path = loop.synthetic / "provenance.jsonl"
    path.write_text(path.read_text().replace('"host_subject": "A", ', '"host_subject": "B", '))
    content = json.loads((loop.synthetic / "manifest.json").read_text())
    content["training"][0]["subject"] = "B"
    (loop.synthetic / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="leak guard: the record of p0 says that its host A_1 is not of subject A"):
        loop.check()


def test_runs_from_before_digests_pass_and_say_what_was_not_checked(loop, caplog):
    loop.without_digests()
    loop.check()
    assert "recorded no digests of its scans" in caplog.text and "2 pairs were made before digests" in caplog.text


def test_the_digest_of_a_cohort_is_of_its_splits_schema_and_contents(loop):
    contents = case_contents(loop.cohort, loop.cohort.cases, loop.data)
    first = cohort_digest(loop.cohort, contents)
    assert cohort_digest(replace(loop.cohort, root="/elsewhere", description="x"), contents) == first
    moved = tuple(replace(case, split="train") if case.subject == "U" else case for case in loop.cohort.cases)
    others = [
        cohort_digest(replace(loop.cohort, cases=moved), contents),
        cohort_digest(replace(loop.cohort, cases=loop.cohort.cases[:-1]), contents),
        cohort_digest(replace(loop.cohort, schema=LabelSchema(((0, "background"), (1, "core")))), contents),
        cohort_digest(loop.cohort, contents | {"U_1": contents["T_1"]}),
    ]
    assert len({first, *others}) == 5


def test_one_scan_stored_twice_in_two_ways_is_found_in_model_space(loop, tmp_path):
    """Compressed anew, with another header, or in other units: other bytes, the same voxels for a model."""
    volume = np.asanyarray(nib.load(loop.data / "A.nii.gz").dataobj)
    write_volume(loop.data / "T.nii.gz", (2 * volume + 7).astype(np.int16), np.eye(4), "another description")
    cases = {split: loop.cohort.split(split) for split in ("train", "test")}
    loaded = {k: load_cases(loop.cohort, some, SPACE, tmp_path / "cache") for k, some in cases.items()}
    with pytest.raises(UserError, match=r"leak: T_1 \(test\) holds the scan of A_1 \(train\)"):
        refuse_copies(loaded)
    refuse_copies({"train": loaded["train"], "test": loaded["test"][1:]})
    blank = [replace(case, image=np.zeros_like(case.image)) for case in loaded["train"]]
    refuse_copies({"train": blank, "test": [replace(blank[0], case=loaded["test"][0].case)]})


def test_pairs_of_another_run_are_checked_against_their_provenance(loop, tmp_path):
    path = loop.synthetic / "manifest.json"
    external = read_external(path, None, tmp_path)
    assert external.seen is None and external.checkpoint is None  # the checkpoint that made them is gone
    assert [record["host_subject"] for record in external.pairs.records] == ["A", "B"]
    contents = case_contents(loop.cohort, loop.cohort.cases, tmp_path)
    refuse_external_leaks(loop.cohort, contents, external)
    moved = replace(loop.cohort, cases=tuple(replace(c, split="test") for c in loop.cohort.cases if c.subject == "B"))
    with pytest.raises(UserError, match="p1 of toy_synthetic is of test subject B"):
        refuse_external_leaks(moved, contents, external)
    shutil.copy(loop.synthetic / "labelsTr/p0.nii.gz", loop.synthetic / "labelsTr/p1.nii.gz")
    with pytest.raises(UserError, match="is not the file of p1 that was generated"):
        read_external(path, None, tmp_path)
