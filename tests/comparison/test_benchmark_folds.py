"""Cross-validation: every subject is scored once, by segmenters that did not see it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from small_cohort import SCHEMA, write_case

from medaug import benchmark
from medaug.cohort.folds import kfold
from medaug.cohort.manifest import Manifest
from medaug.comparison.folds import fold_cohort
from medaug.comparison.results import Benchmark
from medaug.config import load_options
from medaug.errors import UserError
from medaug.evaluation.scores import MEAN_FOREGROUND

SUBJECTS = {"a": "train", "b": "train", "c": "val", "d": "train", "e": "train", "f": "train", "t": "test"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    cases = tuple(write_case(root, s, s, split, seed) for seed, (s, split) in enumerate(SUBJECTS.items()))
    manifest = Manifest("toy", "", ("T1",), SCHEMA, cases, str(root))
    manifest.save(root / "cohort.json")
    return manifest


def test_each_subject_outside_the_test_split_is_scored_in_one_fold_and_validates_in_another(cohort):
    folds = [fold_cohort(cohort, 3, fold, 5) for fold in range(3)]
    expected = kfold(cohort.cases, 3, 5)
    for fold, one in enumerate(folds):
        assert one.subjects("test") == {s for s, k in expected.items() if k == fold}
        assert one.subjects("val") == folds[(fold + 1) % 3].subjects("test")
        assert one.subjects("train") | one.subjects("val") | one.subjects("test") == set("abcdef")


@pytest.mark.slow
def test_scores_of_the_folds_make_one_table_and_leaks_of_a_fold_are_refused(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=cohort", "preset=smoke", f"cohort={cohort.root}/cohort.json", "steps=1", "seeds=[0,1]"]
    words += ["segmenter.channels=[4,8]", "segmenter.batch_size=2", "segmenter.num_workers=0", "folds=3"]

    def run(*more):
        benchmark.main(load_options("benchmark", [*words, *more]))

    run("arms.names=[real,real+classical]")
    folder = tmp_path / "runs/cohort/benchmark"
    found = Benchmark.load(folder)
    fold_of = kfold(cohort.cases, 3, 0)
    assert dict(found.folds) == fold_of and set(found.subjects) == set("abcdef") and found.looks is None
    files = sorted(folder.glob("jobs/real/fold_*/seed_*/scores.csv"))
    rows = pd.concat(map(pd.read_csv, files)).query("metric == 'dice'")
    assert len(files) == 6 and len(rows) == 2 * 6
    assert all(fold_of[case] == fold for case, fold in zip(rows.case, rows.fold, strict=True))
    table = rows.pivot_table(index="seed", columns="case", values="value")[list(found.subjects)]
    assert np.array_equal(found.table("real", MEAN_FOREGROUND, "dice"), table.to_numpy())
    assert "in cross-validation on" in (folder / "report.html").read_text()
    saved = Manifest.load(folder / "folds/fold_1.json")  # on which a generator for this fold can be trained
    assert saved.cases == fold_cohort(cohort, 3, 1, 0).cases

    pairs = Manifest("peer", "", ("T1",), SCHEMA, (write_case(tmp_path / "p", "p", "p", seed=70),), str(tmp_path / "p"))
    for fold in range(3):
        path = tmp_path / f"p/fold_{fold}.json"
        pairs.save(path)
        seen = sorted(fold_cohort(cohort, 3, 0 if fold == 2 else fold, 0).subjects("train"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seen": seen}))
    with pytest.raises(UserError, match=r"leak: the generator of peer saw test subject"):  # that of fold 2 is of fold 0
        run("arms.names=[real,real+classical,real+classical+synthetic]", f"pairs={tmp_path}/p/fold_{{fold}}.json")
