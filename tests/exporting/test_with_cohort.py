"""Pairs exported beside the real scans of their generator: one manifest, and folds without a leak."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.errors import UserError
from medaug.export import main
from medaug.exporting.nnunet import write_nnunet
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume
from medaug.options import ExportOptions, Options
from medaug.runs import finish
from medaug.synthesis.joining import beside_cohort
from medaug.synthesis.pairs import Pairs

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))


def cohort(root: Path, **subjects: str) -> Manifest:
    """A case of 3x3x3 voxels for every name, in the split behind its subject: a="s1 train"."""
    cases = []
    for name, text in subjects.items():
        for kind in ("image", "label"):
            write_volume(root / f"{name}_{kind}.nii.gz", np.ones((3, 3, 3), np.uint8), np.eye(4))
        subject, split = text.split()
        cases.append(Case(name, (f"{name}_image.nii.gz",), f"{name}_label.nii.gz", subject, split))
    return Manifest("toy", "", ("MR",), SCHEMA, tuple(cases), str(root))


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """The folder of an experiment whose generator was trained on s1 and s2, with two pairs of s1."""
    folder, checkpoint = tmp_path / "runs/toy", b"weights"
    real = cohort(tmp_path / "data", a="s1 train", b="s2 train", c="s3 val", d="s4 test")
    (folder / "train").mkdir(parents=True)
    real.save(folder / "train/manifest.json")
    (folder / "train/last.ckpt").write_bytes(checkpoint)
    seen = Seen({"train": ["s1", "s2"], "val": ["s3"]})
    monkeypatch.setattr("medaug.synthesis.joining.read_checkpoint", lambda path: (SimpleNamespace(seen=seen), {}))
    pairs = cohort(folder / "synthetic", x="s1 train", y="s1 train")
    pairs.save(folder / "synthetic/manifest.json")
    for index, case in enumerate(pairs.cases):
        digest = hashlib.sha256(checkpoint).hexdigest()
        recipe = Recipe(index, 0, "a", "s1", "real", {}, 1.0, "ddim", 1, 0.0, index, digest)
        files = {"name": case.name, "images": list(case.images), "label": case.label, "subjects": ["s1"]}
        provenance.append(folder / "synthetic/provenance.jsonl", recipe.to_mapping() | files)
    finish(folder / "synthetic", {"pairs": 2})
    return folder


def export(run: Path) -> Path:
    out = run.parent.parent / "Dataset501_Toy"
    node = ExportOptions(format="nnunet", out=str(out), with_cohort=True)
    main(Options(experiment="toy", runs=str(run.parent), export=node))
    return out


def test_nnunet_trains_on_both_and_validates_on_real_scans_alone(run):
    out = export(run)
    assert json.loads((out / "splits_final.json").read_text()) == [{"train": ["a", "b", "x", "y"], "val": ["c"]}]
    assert sorted(path.name for path in (out / "imagesTs").iterdir()) == ["d_0000.nii.gz"]
    assert sorted(path.name for path in out.rglob("*.json")) == sorted(
        ["dataset.json", "splits_final.json", "x.json", "x_0000.json", "y.json", "y_0000.json"]
    )
    assert json.loads((out / "dataset.json").read_text())["medaug"]["subjects"] == {
        **{"a": "s1", "b": "s2", "c": "s3", "d": "s4"},
        **{"x": "s1", "y": "s1"},
    }


@pytest.mark.parametrize(
    ("seen", "subjects", "kept"),
    [
        ({"s1", "s2"}, ["s1"], ["a", "x"]),
        ({"s1", "s3"}, ["s1"], ["a"]),  # the generator was trained on s3, on which this fold validates
        (set(), ["s1", "s3"], ["a"]),  # the generator of the masks was
    ],
)
def test_a_pair_is_in_no_fold_that_validates_on_a_subject_its_generator_saw(tmp_path, caplog, seen, subjects, kept):
    both = cohort(tmp_path / "in", a="s1 train", x="s1 train", c="s3 val")
    record = {"checkpoint": "0", "subjects": subjects}
    with caplog.at_level(logging.WARNING):
        write_nnunet(Export(both, tmp_path / "out", {"x": record}, frozenset(seen)))
    assert json.loads((tmp_path / "out/splits_final.json").read_text()) == [{"train": kept, "val": ["c"]}]
    assert ("1 synthetic cases are in no fold" in caplog.text) == ("x" not in kept)


def test_a_checkpoint_that_was_replaced_is_refused(run):
    (run / "train/last.ckpt").write_bytes(b"other")
    with pytest.raises(UserError, match="no checkpoint that made the pairs, .*; generate the pairs again"):
        beside_cohort(Pairs.load(run / "synthetic"), run / "train")
