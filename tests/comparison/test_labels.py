"""Label counts and draws: which training scans keep their labels, and which jobs may use pairs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from medaug.cohort.folds import hide_labels
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.comparison.benchmark import all_jobs
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.labels import TrainingScans, label_counts
from medaug.comparison.results import Benchmark
from medaug.comparison.scores import Scores
from medaug.data.contents import case_contents
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.options import ArmsOptions, BenchmarkOptions, DataOptions, Options
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Card

SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Six training subjects, of which one has no label, and a generator that saw the labels of two: data.labelled=2."""
    root = tmp_path_factory.mktemp("labels")
    cases = []
    for i in range(6):
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2 : 4 + i % 3, 3:6] = 1
        write_volume(
            root / f"{i}.nii.gz", label * 100.0 + np.random.default_rng(i).normal(0, 9, label.shape), np.eye(4)
        )
        write_volume(root / f"{i}_seg.nii.gz", label, np.eye(4))
        cases.append(Case(f"c{i}", (f"{i}.nii.gz",), None if i == 5 else f"{i}_seg.nii.gz", f"s{i}"))
    whole = Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), str(root))
    whole.save(root / "cohort.json")
    data = DataOptions(manifest=str(root / "cohort.json"), labelled=2, labelled_seed=3)
    card = Card("toy", {"data": asdict(data)}, Preprocessing((8, 8, 8), None), SCHEMA, ("T1",), {}, False)
    cohort = replace(whole, cases=hide_labels(cases, 2, 3))
    pairs = Pairs(replace(cohort, cases=()), ())
    return Inputs(root / "c", "sum", card, pairs, cohort, "content", root / "cache")


def test_draws_are_nested_over_counts_and_differ_from_each_other(inputs):
    scans = TrainingScans.find(inputs, [2, None])
    kept = {(n, d): scans.kept(Job("real", 0, labelled=n, draw=d)) for n in (1, 2, 4, 5) for d in range(4)}
    assert all(len(names) == n for (n, _), names in kept.items())
    assert all(kept[1, d] < kept[2, d] < kept[4, d] < kept[5, d] == {f"c{i}" for i in range(5)} for d in range(4))
    assert len({frozenset(kept[2, d]) for d in range(4)}) > 1
    with pytest.raises(UserError, match="labelled=6: 5 training subjects have labels"):
        scans.kept(Job("real", 0, labelled=6, draw=0))


def test_a_job_trains_on_the_labels_of_its_draw_and_has_the_other_scans_without(inputs):
    scans = TrainingScans.find(inputs, [4])
    job = Job("real", 0, labelled=4, draw=1)
    real, others = scans.real(job), scans.unlabelled(job)
    assert {case.case.name for case in real} == scans.kept(job) and all(case.label is not None for case in real)
    assert {case.case.name for case in (*real, *others)} == {f"c{i}" for i in range(6)}
    assert len(others) == 2 and all(case.label is None and case.case.label is None for case in others)
    everything = Job("real", 0)  # all labels that the generator's training had
    assert {case.case.name for case in scans.real(everything)} == {c.name for c in inputs.labelled("train")}


def test_pairs_are_refused_where_their_generator_saw_labels_that_the_draw_hides(inputs):
    scans = TrainingScans.find(inputs, [2])
    scans.refuse_seen(Job("arm", 0))
    scans.refuse_seen(Job("arm", 0, labelled=2, draw=3))  # exactly the labels of its training
    scans.refuse_seen(Job("arm", 0, labelled=5, draw=3))  # more labels than it saw
    with pytest.raises(
        UserError, match=r"leak: arm, labelled 1, draw 3, seed 0 hides .* train it with data.labelled=1"
    ):
        scans.refuse_seen(Job("arm", 0, labelled=1, draw=3))
    trained = scans.kept(Job("arm", 0, labelled=2, draw=3))
    other = next(draw for draw in range(9) if not trained <= scans.kept(Job("arm", 0, labelled=2, draw=draw)))
    with pytest.raises(UserError, match="which the generator saw"):
        scans.refuse_seen(Job("arm", 0, labelled=2, draw=other))


def test_labels_that_an_earlier_training_read_or_a_mask_generator_saw_are_refused(inputs):
    scans = TrainingScans.find(inputs, [2])
    job = Job("arm", 0, labelled=2, draw=3)
    hidden = next(case for case in scans.cohort.cases if case.label and case.name not in scans.kept(job))
    file = scans.labelled[[case.case.name for case in scans.labelled].index(hidden.name)]
    digest = case_contents(scans.cohort, [hidden], inputs.cache)[hidden.name][-1]
    read = replace(inputs, card=replace(inputs.card, contents={"elsewhere": [digest]}))
    record = {"mask_source": "generated", "subjects": [file.case.subject]}
    masks = replace(inputs, pairs=Pairs(inputs.pairs.manifest, (record,)))
    for planted in (read, masks):
        with pytest.raises(UserError, match=f"label of subject {hidden.subject}"):
            TrainingScans(planted, scans.cohort).refuse_seen(job)


def test_another_cohort_than_the_one_that_was_trained_on_is_refused(inputs):
    moved = replace(inputs, cohort=replace(inputs.cohort, cases=(Case("new", ("0.nii.gz",), None, "s"),)))
    with pytest.raises(UserError, match="new is missing from the cohort"):
        TrainingScans.find(moved, [2])
    assert TrainingScans.find(moved, [None]).cohort is moved.cohort


def test_every_arm_is_trained_for_every_count_draw_and_seed():
    settings = BenchmarkOptions(labelled=["4", "all"], draws=[0, 7], seeds=[0, 1])
    jobs = all_jobs(Options(arms=ArmsOptions(names=["real", "real+classical"]), benchmark=settings))
    assert len(jobs) == len(set(jobs)) == 2 * (2 * 2 + 2)  # with all labels there is nothing to draw
    assert {(job.labelled, job.draw) for job in jobs} == {(4, 0), (4, 7), (None, None)}
    assert jobs[2].scores(Path("b")) == Path("b/jobs/real/labelled_4/draw_0/seed_1/scores.csv")
    for word in ("0", "-1", "many", "4.5"):
        with pytest.raises(UserError, match=r"give numbers of subjects \(1 or more\) or all"):
            label_counts(BenchmarkOptions(labelled=[word]))


def test_arms_are_compared_within_a_draw_and_draws_are_what_is_resampled(tmp_path):
    """A draw shifts both arms by up to 0.3; the paired difference is 0.05 in each, so its interval is narrow."""
    rng = np.random.default_rng(0)
    shift = {0: -0.3, 1: 0.0, 2: 0.3}
    subjects = {f"c{i}": f"s{i // 2}" for i in range(16)}
    values = {
        (Job(arm, seed, labelled=4, draw=draw), case, "lesion", "dice"): 0.5 + shift[draw] + gain + rng.normal(0, 0.005)
        for arm, gain in (("real", 0.0), ("real+classical", 0.05))
        for draw in shift
        for seed in (0, 1)
        for case in subjects
    }
    scores = Scores(values, ("lesion",), tmp_path / "scores.csv", "")
    floor = {"mean foreground": 0.1, "lesion": 0.1}
    arms = ("real", "real+classical")
    bench = Benchmark("toy", False, False, arms, (0, 1), 1, subjects, floor, 3, 3, 0, {}, scores, (), (4,), (0, 1, 2))
    assert bench.table("real", "lesion", "dice", 4).shape == (3, 16)
    compared = bench.compare([("real+classical", "real")])
    one = compared.headlines[0]
    assert one.labelled == 4 and one.verdict == "gain" and one.difference.mean == pytest.approx(0.05, abs=0.01)
    assert one.difference.high - one.difference.low < 0.02
    spread = bench.mean("real", "lesion", "dice", 4)
    assert spread.high - spread.low > 0.3
    compared.save(tmp_path)
    again = Benchmark.load(tmp_path)
    assert again.comparisons == compared.comparisons and again.scores.values == scores.values
    assert [title for title, *_ in again.rows] == ["real, 4 labelled", "real+classical, 4 labelled"]
