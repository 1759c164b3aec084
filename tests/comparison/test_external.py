"""Pairs from other generators, for a cohort on which nothing was trained: a whole run, and each leak planted."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
from small_cohort import SCHEMA, write_case

from medaug import benchmark
from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import LabelSchema
from medaug.cohort.seen import Seen
from medaug.comparison.external import read_external, refuse_external_leaks, refuse_held_out_masks
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.labels import TrainingScans
from medaug.comparison.results import Benchmark
from medaug.config import load_options
from medaug.data.cases import load_cases
from medaug.data.contents import case_contents
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.training.checkpoint import Card

SPACE = Preprocessing((8, 8, 8), None, (0.0, 100.0))
SPLITS = dict.fromkeys("ABC", "train") | {"V": "val"} | dict.fromkeys("TU", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six subjects, and three pairs made by another generator."""
    root = tmp_path_factory.mktemp("external")
    cases = [write_case(root, f"{s}_1", s, split, seed) for seed, (s, split) in enumerate(SPLITS.items())]
    cohort = Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), str(root))
    pairs = tuple(write_case(root / "peer", f"p{i}", f"p{i}", seed=50 + i) for i in range(3))
    peer = Manifest("peer", "", ("T1",), SCHEMA, pairs, str(root / "peer"))
    cohort.save(root / "cohort.json")
    peer.save(root / "peer" / "manifest.json")
    return root, cohort, peer


def check(world, tmp_path, cases=(), key=None, file=None, **changes):
    """Guard the external pairs with further cases, and a declaration in the manifest or in a file."""
    root, cohort, peer = world
    path, declaration = tmp_path / "peer.json", None
    replace(peer, cases=(*peer.cases, *cases), **changes).save(path)
    if key is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seen": key}))
    if file is not None:
        declaration = tmp_path / "seen.txt"
        declaration.write_text(file)
    external = read_external(path, declaration, tmp_path / "cache")
    refuse_external_leaks(cohort, case_contents(cohort, cohort.cases, tmp_path / "cache"), external)
    return external


def test_what_was_seen_is_declared_in_the_manifest_or_in_a_file_or_not_at_all(world, tmp_path):
    assert check(world, tmp_path).seen is None
    assert check(world, tmp_path, key=[]).seen == Seen({"train": []})  # declared: it saw nobody
    both = check(world, tmp_path, key={"train": ["A"], "val": ["V"]}, file="# training\nB\n\n C \n").seen
    assert both == Seen({"train": ["A", "B", "C"], "val": ["V"]})
    for wrong in ("A", {"test": ["T"]}, [1], {"train": "A"}):
        with pytest.raises(UserError, match=r'peer\.json: seen is .*; declare them as "seen": '):
            check(world, tmp_path, key=wrong)


def test_every_kind_of_leak_is_refused_by_name(world, tmp_path):
    root, cohort, _ = world
    with pytest.raises(UserError, match=r"generator of peer saw test subject\(s\) T; leave it out"):
        check(world, tmp_path, key=["A", "T"])
    with pytest.raises(UserError, match=r"generator of peer trained on validation subject\(s\) V"):
        check(world, tmp_path, file="V\n")
    for subject, split in (("U", "test"), ("V", "val")):
        with pytest.raises(UserError, match=f"x of peer is of {split} subject {subject}"):
            check(world, tmp_path, [write_case(root / "peer", "x", subject)])
    shutil.copy(root / "T_1.nii.gz", root / "peer" / "y.nii.gz")
    with pytest.raises(UserError, match=r"y of peer is the scan of T_1 \(test\)"):
        check(world, tmp_path, [replace(write_case(root / "peer", "z", "z"), name="y", images=("y.nii.gz",))])
    other = LabelSchema(((0, "background"), (1, "tumour")))
    with pytest.raises(UserError, match="peer has the classes background, tumour, the cohort background, lesion"):
        check(world, tmp_path, schema=other)
    with pytest.raises(UserError, match="w has no label; give every pair its mask"):
        check(world, tmp_path, [replace(write_case(root / "peer", "w", "w"), label=None)])


def test_the_mask_of_a_scan_that_is_scored_is_found_under_another_header(world, tmp_path):
    root, cohort, peer = world
    stolen = write_case(root / "peer", "stolen", "stolen", seed=4)  # the mask of T, another file
    write_volume(root / "peer" / "stolen.nii.gz", np.random.default_rng(0).normal(0, 9, (8, 8, 8)), np.eye(4))
    scored = load_cases(cohort, cohort.split("test"), SPACE, tmp_path)
    refuse_held_out_masks(scored, load_cases(peer, peer.cases, SPACE, tmp_path))
    pairs = load_cases(replace(peer, cases=(stolen,)), [stolen], SPACE, tmp_path)
    with pytest.raises(UserError, match=r"stolen has the mask of T_1 \(test\)"):
        refuse_held_out_masks(scored, pairs)


def test_a_draw_that_hides_labels_of_declared_subjects_is_refused(world, tmp_path):
    root, cohort, _ = world
    card = Card("toy", {"data": {}}, SPACE, SCHEMA, ("T1",), {}, False)
    for key, refused in ((["A", "B", "C"], True), ([], False)):
        external = check(world, tmp_path, key=key)
        inputs = Inputs(None, None, card, external.pairs, cohort, "content", tmp_path / "cache", external)
        scans, job = TrainingScans.find(inputs, [2]), Job("arm", 0, labelled=2, draw=0)
        if refused:
            with pytest.raises(UserError, match="hides the label of subject .*, which the generator"):
                scans.refuse_seen(job)
        else:
            scans.refuse_seen(job)


@pytest.mark.slow
def test_pairs_of_another_generator_are_compared_on_a_cohort_without_a_training(world, tmp_path, monkeypatch):
    """Baselines first, without pairs; then an arm with pairs is added; then the declaration, which changes no score."""
    root, _, peer = world
    monkeypatch.chdir(tmp_path)
    words = ["experiment=cohort", "preset=smoke", f"cohort={root / 'cohort.json'}", "steps=1", "seeds=[0]"]
    words += ["segmenter.channels=[4,8]", "segmenter.batch_size=2", "segmenter.num_workers=0"]
    peer.save(root / "peer" / "manifest.json")

    def run(*more):
        out = io.StringIO()
        with redirect_stdout(out):
            benchmark.main(load_options("benchmark", [*words, *more]))
        return out.getvalue(), Benchmark.load(tmp_path / "runs/cohort/benchmark")

    printed, found = run("arms.names=[real,real+classical]")
    assert "leak cannot be excluded" not in printed and found.num_synthetic == 0 and found.leak_excluded
    with pytest.raises(UserError, match=r"data\.crop: has no effect without benchmark\.cohort"):
        load_options("benchmark", ["experiment=cohort", "data.crop=body"])
    done = tmp_path / "runs/cohort/benchmark/jobs/real/seed_0/scores.csv"
    before = done.stat().st_mtime_ns
    arms = "arms.names=[real,real+classical,real+classical+synthetic]"
    with pytest.raises(UserError, match=r"arm real\+classical\+synthetic trains on synthetic pairs; give pairs="):
        run(arms)
    printed, found = run(arms, f"pairs={root / 'peer' / 'manifest.json'}")
    assert printed.startswith("A leak cannot be excluded")
    assert (found.pairs_of, found.num_synthetic, found.leak_excluded, found.looks) == ("peer", 3, False, 2)
    report = (tmp_path / "runs/cohort/benchmark/report.html").read_text()
    assert report.index("A leak cannot be excluded") < report.index("Smoke run") < report.index("Verdict")
    (tmp_path / "seen.txt").write_text("A\nB\n")
    printed, declared = run(arms, f"pairs={root / 'peer' / 'manifest.json'}", f"pairs_seen={tmp_path / 'seen.txt'}")
    assert declared.leak_excluded and declared.scores.values == found.scores.values
    assert "leak cannot be excluded" not in printed and done.stat().st_mtime_ns == before
    printed, _ = run("arms.names=[real,real+classical]", "overwrite=true")  # knows all files of its folder as its own
    assert done.stat().st_mtime_ns != before
