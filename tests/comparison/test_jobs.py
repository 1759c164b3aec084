"""Scores and comparisons against pandas; jobs are done once."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.comparison.arms import ARMS as TABLE
from medaug.comparison.arms import pairs_to_compare
from medaug.comparison.inference import COLUMNS as TESTS
from medaug.comparison.job import Job
from medaug.comparison.jobs import TestSet, gather, run_job
from medaug.comparison.material import Material
from medaug.comparison.results import COLUMNS as COMPARISON_COLUMNS
from medaug.comparison.results import Benchmark, save_comparisons
from medaug.comparison.scores import COLUMNS as SCORE_COLUMNS
from medaug.comparison.scores import Scores
from medaug.csv_files import write_csv
from medaug.data.cases import load_cases, read_case
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.evaluation.statistics import paired_comparison
from medaug.imaging.nifti import write_volume
from medaug.options import SegmenterOptions
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Backend, Problem, TrainingSet

ARMS = ["real", "real+classical", "real+classical+synthetic"]
CLASSES = ("Anterior", "Posterior")
METRICS = ("dice", "hd95")
SEEDS = (0, 1)
SUBJECTS = {"c0": "A", **{f"c{i}": letter for i, letter in enumerate("ABCDEFG", start=1)}}
SETS = ("whole", "rim")
SUBJECTS_OF = {f"case_{i}": f"subject_{i}" for i in range(3)}
FLOOR = {"mean foreground": 0.25, "Anterior": 0.2, "Posterior": 0.3}
SHIFT = {ARMS[0]: 0.0, ARMS[1]: 0.1, ARMS[2]: 0.1}


def compare(rows, pairs, seeds, subjects, classes, bootstrap_seed, floor, path):
    """The comparison of rows of scores.csv, as comparison.csv."""
    keys = [(Job(r["arm"], int(r["seed"])), r["case"], r["class"], r["metric"]) for r in rows]
    values = {key: float(row["value"]) for key, row in zip(keys, rows, strict=True)}
    scores = Scores(values, tuple(classes), path, "again")
    arms = tuple(dict.fromkeys(r["arm"] for r in rows))
    bench = Benchmark("toy", False, False, arms, tuple(seeds), 1, subjects, floor, 3, 3, bootstrap_seed, {}, scores)
    save_comparisons(path, bench.compare(pairs).comparisons)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    found = []
    for arm in ARMS:
        for seed in SEEDS:
            for case in SUBJECTS:
                for name in CLASSES:
                    found.append((arm, seed, case, name, "dice", 0.6 + SHIFT[arm] + rng.normal(0, 0.01)))
                    found.append((arm, seed, case, name, "hd95", 5 + 20 * SHIFT[arm] + rng.normal(0, 0.1)))
    return [dict(zip(SCORE_COLUMNS, map(str, row), strict=True)) for row in found]


def test_the_comparison_agrees_with_pandas(rows, tmp_path):
    path = tmp_path / "comparison.csv"
    compare(rows[::-1], pairs_to_compare(ARMS), SEEDS, SUBJECTS, CLASSES, 7, FLOOR, path)
    scores = pd.DataFrame(rows).astype({"value": float, "seed": int})
    result = pd.read_csv(path)
    assert tuple(result.columns) == (*COMPARISON_COLUMNS, *TESTS)
    assert len(result) == 2 * 2 * 3 and (result.num_subjects == 7).all() and (result.num_seeds == 2).all()
    for _, line in result.iterrows():
        chosen = scores[scores.metric == line.metric]
        if line["class"] != "mean foreground":
            chosen = chosen[chosen["class"] == line["class"]]
        tables = chosen.pivot_table(index=["arm", "seed"], columns="case", values="value", aggfunc="mean")
        a, b = tables.loc[line.arm], tables.loc[line.baseline]
        assert line.mean_difference == pytest.approx((a - b).to_numpy().mean())
        interval = paired_comparison(a.to_numpy(), b.to_numpy(), [SUBJECTS[c] for c in tables.columns], 7)
        assert (line.low, line.high) == pytest.approx((interval.low, interval.high))


def test_verdicts_respect_the_direction_of_each_metric(rows, tmp_path):
    compare(rows, pairs_to_compare(ARMS), SEEDS, SUBJECTS, CLASSES, 0, FLOOR, tmp_path / "c.csv")
    result = pd.read_csv(tmp_path / "c.csv").set_index(["arm", "metric", "class"]).verdict
    assert result[ARMS[1], "dice", "mean foreground"] == "gain"
    assert result[ARMS[1], "hd95", "mean foreground"] == "harm"  # farther away
    assert (result[ARMS[2]] == "no evidence of a difference").sum() >= 4


@pytest.mark.parametrize(
    ("floor", "silent"),
    [(0.59, set()), (0.65, set()), (0.72, {"Anterior"})],
)
def test_arms_that_are_not_above_a_trivial_baseline_get_no_verdict(rows, tmp_path, floor, silent):
    """It is enough if one arm is above the baseline: 0.6 against 0.7, with a baseline of 0.65, is a gain."""
    compare(rows, [(ARMS[1], ARMS[0])], SEEDS, SUBJECTS, CLASSES, 0, FLOOR | {"Anterior": floor}, tmp_path / "c.csv")
    result = pd.read_csv(tmp_path / "c.csv").set_index(["class", "metric"])
    assert set(result.index[result.verdict.str.startswith("no verdict")]) == {(n, m) for n in silent for m in METRICS}
    assert (result.loc["Anterior"].floor == floor).all() and result.loc["Posterior"].verdict["dice"] == "gain"


def test_below_six_subjects_there_is_no_verdict_whatever_was_learned(rows, tmp_path):
    few = {case: "ABC"[i % 3] for i, case in enumerate(SUBJECTS)}
    for floor in (FLOOR, dict.fromkeys(FLOOR, 1.0)):
        compare(rows, pairs_to_compare(ARMS), SEEDS, few, CLASSES, 0, floor, tmp_path / "c.csv")
        assert set(pd.read_csv(tmp_path / "c.csv").verdict) == {"too few subjects for a verdict"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Three scans on grids unlike the model's, a schema with a gap, and a tiny budget."""
    root = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    cases = []
    for i, shape in enumerate([(14, 16, 12), (16, 16, 10), (12, 12, 12)]):
        label = np.zeros(shape, np.uint8)
        label[4:8, 4:9, 3:7], label[8:10, 4:9, 3:7] = 1, 4
        matrix = np.diag([1, 1.5, 2, 1]) if i else np.diag([-1.5, 1, 1, 1])
        write_volume(root / f"{i}.nii.gz", (label * 100 + rng.normal(0, 5, shape)).astype("i2"), matrix)
        write_volume(root / f"{i}_seg.nii.gz", label, matrix)
        cases.append(Case(f"case_{i}", (f"{i}.nii.gz",), f"{i}_seg.nii.gz", f"subject_{i}", "test"))
    schema = LabelSchema(((0, "background"), (1, "core"), (4, "rim")))
    manifest = Manifest("toy", "", ("T1",), schema, tuple(cases), str(root))
    space = Preprocessing((16, 16, 16), (1.5, 1.5, 1.5), (0.5, 99.5))
    return manifest, space, load_cases(manifest, cases, space, root / "cache")


BY_MASKS = ("dice", "hd95", "nsd", "volume_error")
OPTIONS = SegmenterOptions(channels=[4, 8], batch_size=2, num_workers=0)


def gathered(jobs, structures, folder):
    """The rows of scores.csv."""
    gather(jobs, structures, folder).save(folder / "scores.csv")
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class FixedSegmenter:
    """A segmenter that is not a network: it returns label maps in model space, one after the other."""

    def __init__(self, labels, space):
        self.labels, self.space = labels, space

    def fit(self, training_set, steps, seed, name):
        self.fitted = (training_set, steps, seed, name)

    def predict(self, case):
        return self.space.invert_label(np.array(next(self.labels)), case.placement)


def run(job, folder, bench, segmenter=None):
    manifest, space, loaded = bench
    problem = Problem(manifest.modalities, manifest.schema, space)
    segmenter = segmenter or BACKENDS["unet"].make(problem, OPTIONS)
    training_set = TABLE[job.arm].training_set(Material(loaded, loaded, 0.5, manifest.schema))
    run_job(job, segmenter, lambda: training_set, 1, TestSet(manifest, loaded), folder)


def test_scores_are_taken_on_the_scans_own_grid(bench, tmp_path):
    manifest, space, loaded = bench
    segmenter = FixedSegmenter(iter([c.label for c in loaded]), space)
    run(Job(ARMS[0], 3), tmp_path, bench, segmenter)
    assert segmenter.fitted[1:] == (1, 3, "real, seed 3")
    rows = pd.read_csv(Job(ARMS[0], 3).scores(tmp_path))
    assert tuple(rows.columns) == SCORE_COLUMNS and len(rows) == 3 * 2 * len(BY_MASKS)
    assert set(rows.metric) == set(BY_MASKS)
    assert set(rows["class"]) == {"core", "rim"} and set(rows.seed) == {3} and set(rows.arm) == {ARMS[0]}
    for case in loaded:
        original = read_case(manifest, case.case)[1]
        back = space.invert_label(np.array(case.label), case.placement)
        for index, name in ((1, "core"), (2, "rim")):
            a, b = back == index, original == index
            expected = 2 * (a & b).sum() / (a.sum() + b.sum())
            row = rows[(rows.case == case.case.name) & (rows["class"] == name) & (rows.metric == "dice")]
            assert row.value.item() == pytest.approx(expected)
            assert expected > 0.6  # a perfect prediction loses to resampling only


def test_regions_are_scored_and_compared_by_name(bench, tmp_path):
    manifest, space, loaded = bench
    regions = (("whole", (1, 4)), ("rim", (4,)))
    manifest = replace(manifest, schema=replace(manifest.schema, regions=regions))
    labels = iter([np.where(np.array(c.label) == 2, 1, c.label) for c in loaded] * 2)  # the rim is never found
    jobs = [Job(arm, 0) for arm in ARMS[:2]]
    for job in jobs:
        run(job, tmp_path, (manifest, space, loaded), FixedSegmenter(labels, space))
    rows = gathered(jobs, SETS, tmp_path)
    dice = {name: [float(r["value"]) for r in rows if (r["class"], r["metric"]) == (name, "dice")] for name in SETS}
    assert min(dice["whole"]) > 0.8 and max(dice["rim"]) == 0 and len(rows) == 2 * 3 * 2 * len(BY_MASKS)
    compare(
        rows,
        [(ARMS[1], ARMS[0])],
        [0],
        SUBJECTS_OF,
        SETS,
        0,
        dict.fromkeys(("mean foreground", *SETS), 0.0),
        tmp_path / "c.csv",
    )
    assert set(pd.read_csv(tmp_path / "c.csv")["class"]) == {"mean foreground", *SETS}


@pytest.mark.slow
def test_finished_jobs_are_kept_and_unfinished_ones_repeated(bench, tmp_path):
    jobs = [Job(arm, seed) for seed in (0, 1) for arm in ARMS[1:]]
    for job in jobs[:3]:
        run(job, tmp_path, bench)
    stamps = [job.scores(tmp_path).stat().st_mtime_ns for job in jobs[:3]]
    contents = [job.scores(tmp_path).read_bytes() for job in jobs[:3]]
    jobs[0].scores(tmp_path).unlink()  # as a killed process leaves it: a folder without scores
    for job in jobs:
        run(job, tmp_path, bench)
    after = [job.scores(tmp_path).stat().st_mtime_ns for job in jobs[:3]]
    assert after[0] != stamps[0] and after[1:] == stamps[1:]
    assert [job.scores(tmp_path).read_bytes() for job in jobs[:3]] == contents  # the same arguments, the same scores
    rows = gathered(jobs, ("core", "rim"), tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert len(rows) == len(jobs) * 3 * 2 * len({*BY_MASKS, "ece", "brier"})
    assert {r["metric"] for r in rows} == {*BY_MASKS, "ece", "brier"}  # the U-Net gives probabilities
    assert {(r["arm"], r["seed"]) for r in rows} == {(job.arm, str(job.seed)) for job in jobs}


@pytest.mark.slow
def test_scores_that_were_edited_are_refused_by_the_job_that_wrote_them(bench, tmp_path):
    job = Job(ARMS[0], 0)
    run(job, tmp_path, bench)
    path = job.scores(tmp_path)
    line = path.with_suffix(".sha256").read_text()
    assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  scores.csv\n"
    content = path.read_text()
    path.write_text(content.replace("dice,0.", "dice,0.9", 1) if "dice,0." in content else content + "x")
    for again in (lambda: run(job, tmp_path, bench), lambda: gather([job], (), tmp_path)):
        with pytest.raises(UserError, match="jobs/real/seed_0/scores.csv: it or its digest was changed after"):
            again()
    path.unlink()
    run(job, tmp_path, bench)
    path.write_text("edited")
    path.with_suffix(".sha256").unlink()  # as if the job had been killed before its end: it is repeated
    run(job, tmp_path, bench)
    assert path.read_text() == content and path.with_suffix(".sha256").read_text() == line


def test_jobs_do_not_share_a_folder(tmp_path):
    paths = {Job(arm, seed).scores(tmp_path) for arm in ARMS for seed in range(3)}
    assert len(paths) == 9
    choices = [(None, None), (0, None), (None, 8), (0, 8), (1, 8)]
    assert len({Job("real", 0, *choice).scores(tmp_path) for choice in choices}) == 5
    assert Job("real+classical", 2).scores(tmp_path) == tmp_path / "jobs/real_classical/seed_2/scores.csv"
    assert Job("real", 2, 0, 8).scores(tmp_path) == tmp_path / "jobs/real/fold_0/labelled_8/seed_2/scores.csv"


def test_scores_come_back_from_their_file_with_folds_and_label_counts_if_there_are_any(tmp_path):
    plain = {(Job("real", 0), "a", "x", "dice"): 0.1 + 0.2}
    for values, extra in ((plain, ()), (plain | {(Job("real", 0, 1, 8), "a", "x", "dice"): 0.5}, ("fold", "labelled"))):
        Scores(values, ("x",), tmp_path, "").save(tmp_path / "scores.csv")
        header = (tmp_path / "scores.csv").read_text().splitlines()[0]
        assert header == ",".join((*SCORE_COLUMNS, *extra))
        assert Scores.load([tmp_path / "scores.csv"], ("x",), tmp_path, "").values == values


class MostFrequent:
    """A segmenter that is not a network: a voxel gets the most frequent label among voxels of its brightness."""

    def __init__(self, problem: Problem, options: SegmenterOptions) -> None:
        self.problem = problem

    def fit(self, training_set: TrainingSet, steps: int, seed: int, name: str) -> None:
        values = np.concatenate([self.bins(np.asarray(case.image)) for case in training_set.real], axis=None)
        labels = np.concatenate([case.label for case in training_set.real], axis=None)
        counts = np.zeros((10, self.problem.schema.num_classes), int)
        np.add.at(counts, (values, labels), 1)
        self.label = counts.argmax(1).astype(np.uint8)

    def bins(self, image):
        return np.clip((image[0] + 1) * 5, 0, 9).astype(int)

    def predict(self, case):
        label = self.label[self.bins(np.asarray(case.image))]
        return self.problem.preprocessing.invert_label(label, case.placement)


def test_a_backend_without_a_network_runs_a_job(bench, tmp_path, monkeypatch):
    manifest, space, loaded = bench
    backend = SimpleNamespace(make=MostFrequent)
    assert isinstance(backend, Backend)
    monkeypatch.setitem(BACKENDS.own, "most_frequent", lambda: backend)
    segmenter = BACKENDS["most_frequent"].make(Problem(manifest.modalities, manifest.schema, space), OPTIONS)
    run(Job(ARMS[0], 0), tmp_path, bench, segmenter)
    rows = pd.read_csv(Job(ARMS[0], 0).scores(tmp_path))
    assert (
        len(rows) == 3 * 2 * len(BY_MASKS) and (rows[rows.metric == "dice"].value > 0.6).all()
    )  # the classes differ in brightness


def test_a_csv_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, ("a", "b"), [(1, "x,y")])
    assert path.read_text() == 'a,b\n1,"x,y"\n'

    def rows():
        yield 2, "z"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(path, ("a", "b"), rows())
    assert path.read_text() == 'a,b\n1,"x,y"\n' and list(tmp_path.iterdir()) == [path]
