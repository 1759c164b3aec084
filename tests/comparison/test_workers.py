"""Jobs side by side: the same scores as one after another, nothing twice, and nothing lost with a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from small_cohort import SCHEMA, write_case

from medaug import benchmark
from medaug.cohort.manifest import Manifest
from medaug.comparison.benchmark import all_jobs
from medaug.comparison.results import Benchmark
from medaug.comparison.workers import Work, _parameters, run_side_by_side
from medaug.config import load_options
from medaug.errors import UserError

SPLITS = dict.fromkeys("ab", "train") | {"v": "val"} | dict.fromkeys("tu", "test")


class Killed(Work):
    """A benchmark whose workers are killed, as by the system when memory runs out."""

    def prepare(self):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


def words(root, *more):
    cases = tuple(write_case(root, s, s, split, seed) for seed, (s, split) in enumerate(SPLITS.items()))
    Manifest("toy", "", ("T1",), SCHEMA, cases, str(root)).save(root / "cohort.json")
    found = ["experiment=cohort", "preset=smoke", f"cohort={root / 'cohort.json'}", "steps=2", "seeds=[0,1]"]
    found += ["segmenter.channels=[4,8]", "segmenter.batch_size=2", "segmenter.num_workers=0"]
    return [*found, "arms.names=[real,real+classical]", *more]


@pytest.mark.slow
def test_two_workers_give_the_scores_of_one_and_repeat_nothing(tmp_path):
    found = []
    for workers in (1, 2):
        options = load_options("benchmark", words(tmp_path, f"workers={workers}", f"runs={tmp_path / str(workers)}"))
        folder = Path(options.runs) / "cohort" / "benchmark"
        if workers == 2:  # one job is done already, by one process
            first = all_jobs(options)[0]
            for name in ("scores.csv", "scores.sha256"):
                path = first.scores(folder).with_name(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(first.scores(tmp_path / "1/cohort/benchmark").with_name(name).read_bytes())
            stamp = first.scores(folder).stat().st_mtime_ns
            run_side_by_side(Work(options, None, folder, ""), all_jobs(options))
            assert all(job.is_done(folder) for job in all_jobs(options))
            assert first.scores(folder).stat().st_mtime_ns == stamp
            found.append({job: job.scores(folder).read_bytes() for job in all_jobs(options)})
        else:
            benchmark.main(options)
            found.append({job: job.scores(folder).read_bytes() for job in all_jobs(options)})
            assert len(Benchmark.load(folder).scores.values) > 0
    assert found[0] == found[1] and len(found[0]) == 4


@pytest.mark.slow
def test_a_killed_worker_is_one_line(tmp_path):
    options = load_options("benchmark", words(tmp_path, "workers=2"))
    with pytest.raises(
        UserError, match="a worker process was killed.*; run the same command again: jobs that are done"
    ):
        run_side_by_side(Killed(options, None, tmp_path / "b", ""), all_jobs(options))


def test_parameters_of_sbatch_are_words():
    words = ["partition:gpu", "timeout_min:120", "account:a:b"]
    assert _parameters(words) == {"slurm_partition": "gpu", "timeout_min": 120, "slurm_account": "a:b"}
    for wrong in ("gpu", "a b:c", "time:"):
        with pytest.raises(UserError, match="write key:value"):
            _parameters([wrong])
