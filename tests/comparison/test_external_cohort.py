"""An external test cohort: its scores stay apart and are right, and each kind of leak is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import pytest
from pages import Page
from small_cohort import SCHEMA, write_case

from medaug import benchmark
from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.comparison.external_cohort import read_external_cohort, refuse_known_subjects
from medaug.comparison.job import REMOVE
from medaug.comparison.results import Benchmark
from medaug.config import load_options
from medaug.data.contents import case_contents
from medaug.errors import UserError
from medaug.synthesis.pairs import Pairs

SPLITS = dict.fromkeys("ABC", "train") | {"V": "val"} | dict.fromkeys("TUW", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cohort, and one from elsewhere with three test scans and one for training."""
    root = tmp_path_factory.mktemp("elsewhere")
    cases = [write_case(root, f"{s}_1", s, split, seed) for seed, (s, split) in enumerate(SPLITS.items())]
    others = [write_case(root / "far", f"x{i}", f"X{i}", "test" if i else "train", 20 + i) for i in range(4)]
    cohort = Manifest("near", "", ("T1",), SCHEMA, tuple(cases), str(root))
    far = Manifest("far", "", ("T1",), SCHEMA, tuple(others), str(root / "far"))
    cohort.save(root / "cohort.json")
    far.save(root / "far" / "manifest.json")
    return root, cohort, far


def guard(world, tmp_path, seen=(), pair_subjects=(), pair_contents=(), contents=(), **changes):
    root, cohort, far = world
    replace(far, **changes).save(root / "far" / "changed.json")
    external = read_external_cohort(root / "far" / "changed.json", cohort, tmp_path / "cache")
    known = Seen({"train": list(seen)}, frozenset(contents))
    pairs = Pairs(far, ({"name": "p", "subjects": list(pair_subjects), "contents": list(pair_contents)},))
    refuse_known_subjects(cohort, case_contents(cohort, cohort.cases, tmp_path / "cache"), known, pairs, external)
    return external


def test_only_labelled_test_scans_are_scored_and_other_kinds_of_cohorts_refused(world, tmp_path):
    assert [case.name for case in guard(world, tmp_path).manifest.cases] == ["x1", "x2", "x3"]
    far = world[2]
    unlabelled = replace(far.cases[1], label=None)
    assert len(guard(world, tmp_path, cases=(*far.cases[2:], unlabelled)).manifest.cases) == 2
    with pytest.raises(UserError, match="no labelled scan has the split test"):
        guard(world, tmp_path, cases=far.cases[:1])
    with pytest.raises(UserError, match="far has the modalities T2, the cohort T1"):
        guard(world, tmp_path, modalities=("T2",))
    with pytest.raises(UserError, match="far has the classes background, tumour, the cohort background, lesion"):
        guard(world, tmp_path, schema=LabelSchema(((0, "background"), (1, "tumour"))))


def test_every_kind_of_leak_is_refused_by_name(world, tmp_path):
    root, cohort, far = world
    with pytest.raises(UserError, match=r"subject\(s\) X2 of far are also among what the generator saw"):
        guard(world, tmp_path, seen=["X2"])
    with pytest.raises(UserError, match=r"subject\(s\) X3 of far are also among the subjects of the pairs"):
        guard(world, tmp_path, pair_subjects=["X3"])
    with pytest.raises(UserError, match=r"subject\(s\) A of far are also among the experiment's own cohort"):
        guard(world, tmp_path, cases=(replace(far.cases[1], subject="A"),))
    digests = guard(world, tmp_path).contents["x1"]
    for kind in ("pair_contents", "contents"):
        with pytest.raises(UserError, match="x1 of far is a pair, or was seen by its generator"):
            guard(world, tmp_path, **{kind: digests[:1]})
    shutil.copy(root / "A_1.nii.gz", root / "far" / "stolen.nii.gz")
    with pytest.raises(UserError, match=r"x1 of far is the scan of A_1 \(train\)"):
        guard(world, tmp_path, cases=(replace(far.cases[1], images=("stolen.nii.gz",)),))


@pytest.mark.slow
def test_scores_elsewhere_are_those_of_a_benchmark_on_that_cohort(world, tmp_path, monkeypatch):
    """The same training scans, once with each of the two cohorts as the benchmark's own test scans."""
    root, cohort, far = world
    monkeypatch.chdir(tmp_path)
    near = [case for case in cohort.cases if case.split == "test"]
    moved = [replace(c, images=(f"far/{c.images[0]}",), label=f"far/{c.label}") for c in far.cases[1:]]
    replace(cohort, cases=(*cohort.cases[:4], *moved)).save(root / "swapped.json")
    replace(cohort, name="near", cases=tuple(near)).save(root / "near.json")
    words = ["experiment=cohort", "preset=smoke", "steps=1", "seeds=[0]", "arms.names=[real,real+classical]"]
    words += ["segmenter.channels=[4,8]", "segmenter.batch_size=2", "segmenter.num_workers=0"]

    def run(runs, own, *more):
        out = io.StringIO()
        with redirect_stdout(out):
            benchmark.main(load_options("benchmark", [*words, f"runs={runs}", f"cohort={root / own}", *more]))
        return out.getvalue(), tmp_path / runs / "cohort/benchmark"

    printed, folder = run("r1", "cohort.json", f"test={root / 'far/manifest.json'}")
    assert "External test cohort far: 3 subjects. Too few subjects for a verdict (3" in printed
    _, swapped = run("r2", "swapped.json", f"test={root / 'near.json'}")
    for one, other in ((folder, swapped), (swapped, folder)):
        assert (one / "external/scores.csv").read_bytes() == (other / "scores.csv").read_bytes()
        with (one / "external/comparison.csv").open() as file, (other / "comparison.csv").open() as second:
            rows, expected = list(csv.DictReader(file)), list(csv.DictReader(second))
        assert rows == expected
    found = Benchmark.load(folder)
    assert found.elsewhere is not None and found.elsewhere.cohort == "far"
    assert found.scores.values.keys().isdisjoint(found.elsewhere.scores.values)
    contents = json.loads((folder / "report.json").read_text())["external"]
    assert contents["cohort"] == "far" and contents["num_test_subjects"] == 3
    page = Page((folder / "report.html").read_text())
    assert "External test cohort far: 3 subjects" in page.text and len(page.tables["external-table"]) == 5

    scores = folder / "jobs/real/seed_0/scores_external.csv"
    scores.write_text(scores.read_text().replace("0.", "0.9", 1))
    (folder / "finished.json").unlink()
    with pytest.raises(UserError, match=REMOVE):
        run("r1", "cohort.json", f"test={root / 'far/manifest.json'}")
    with pytest.raises(UserError, match=r"made with another configuration .*; overwrite=true replaces it"):
        run("r1", "cohort.json")
    with pytest.raises(UserError, match=r"benchmark\.test cannot be scored with benchmark\.evaluate=val"):
        run("r1", "cohort.json", f"test={root / 'far/manifest.json'}", "evaluate=val")
