"""Runs jobs of a benchmark side by side: in processes of this machine, or as tasks of a SLURM array.

Every worker prepares the benchmark by itself, including the leak guard, and saves each job when it is done. If a worker
is killed, only the job that it was running is lost, and the same command runs the jobs that are left.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from medaug.comparison.benchmark import prepare_folds
from medaug.comparison.inputs import benchmark_inputs
from medaug.comparison.job import Job
from medaug.comparison.labels import TrainingScans, label_counts
from medaug.comparison.setting import Setting
from medaug.errors import UserError
from medaug.options import Options

log = logging.getLogger(__name__)

_GO_ON = "run the same command again: jobs that are done are kept"
_OWN_NAMES = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "name"}
"""Parameters that submitit names itself; all others are passed to sbatch."""


@dataclass(frozen=True)
class Work:
    """All that a worker needs to prepare a benchmark.

    Attributes:
        options: options of the stage.
        checkpoint: checkpoint of the experiment's generator; None: `benchmark.cohort` names a cohort.
        folder: folder of the benchmark, in that of the experiment; its owner has locked it.
        command: the command that makes the experiment's pairs, for messages.
    """

    options: Options
    checkpoint: Path | None
    folder: Path
    command: str

    @property
    def workers(self) -> int:
        """How many run at the same time."""
        return self.options.benchmark.workers

    @property
    def slurm(self) -> list[str]:
        """Parameters of sbatch; empty: the workers are processes of this machine."""
        return self.options.benchmark.slurm

    def prepare(self) -> dict[int | None, Setting]:
        """The setting of each fold.

        Raises:
            UserError: see `benchmark_inputs` and `Setting.prepare`.
        """
        inputs = benchmark_inputs(self.options, self.checkpoint, self.folder.parent, self.command)
        return prepare_folds(inputs, TrainingScans.find(inputs, label_counts(self.options.benchmark)), self.options)

    def __call__(self, jobs: Sequence[Job]) -> int:
        """Run jobs one after another; returns their number."""
        settings = self.prepare()
        for job in jobs:
            settings[job.fold].run(job, self.folder)
        return len(jobs)


def run_side_by_side(work: Work, jobs: Sequence[Job]) -> None:
    """Run the jobs left with `benchmark.workers` workers. Does nothing for one worker without SLURM.

    Args:
        work: the benchmark.
        jobs: all its jobs.

    Raises:
        UserError: a job failed, or a worker was killed.
    """
    left = [job for job in jobs if not job.is_done(work.folder)]
    if not left or not (work.workers > 1 or work.slurm):
        return
    count = min(work.workers, len(left))
    log.info("%d jobs in %d %s", len(left), count, "SLURM tasks" if work.slurm else "processes")
    if work.slurm:
        _run_on_cluster(work, [left[start::count] for start in range(count)])
    else:
        _run_here(work, left, count)


_prepared: tuple[Work, dict[int | None, Setting]] | None = None  # of this worker process


def _begin(work: Work, count: int) -> None:
    global _prepared
    import torch

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # bars of several processes overwrite each other
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    _prepared = work, work.prepare()


def _run_one(job: Job) -> Job:
    assert _prepared is not None
    work, settings = _prepared
    settings[job.fold].run(job, work.folder)
    return job


def _run_here(work: Work, jobs: Sequence[Job], count: int) -> None:
    work.prepare()  # an invalid benchmark fails here, once, rather than in every worker
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(work, count)) as pool:
        futures = [pool.submit(_run_one, job) for job in jobs]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                log.info("%s: done, %d of %d", future.result(), number, len(jobs))
        except BrokenProcessPool:
            raise UserError("a worker process was killed, perhaps because memory ran out", _GO_ON) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _run_on_cluster(work: Work, chunks: Sequence[Sequence[Job]]) -> None:
    try:
        import submitit
    except ImportError:
        raise UserError("benchmark.slurm needs submitit", "pip install 'medaug[cluster]'") from None
    logs = work.folder / "slurm"
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm")
    executor.update_parameters(slurm_array_parallelism=len(chunks), **_parameters(work.slurm))
    tasks = executor.map_array(work, chunks)
    log.info("SLURM job %s; its logs are in %s", tasks[0].job_id.split("_")[0], logs)
    waiting = list(tasks)
    while waiting:
        time.sleep(2)
        for task in [task for task in waiting if task.paths.result_pickle.exists() or task.done()]:
            waiting.remove(task)
            if (error := task.exception()) is not None:
                last = (str(error).strip().splitlines() or ["no message"])[-1]
                raise UserError(f"SLURM task {task.job_id} failed", _GO_ON, path=task.paths.stderr, detail=last)
            log.info("SLURM task %s: done, %d of %d", task.job_id, len(tasks) - len(waiting), len(tasks))


def _parameters(words: Sequence[str]) -> dict[str, str | int]:
    """Arguments of submitit from words such as `partition:gpu`.

    Raises:
        UserError: a word is not key:value.
    """
    found: dict[str, str | int] = {}
    for word in words:
        key, colon, value = word.partition(":")
        if not key.isidentifier() or not colon or not value:
            raise UserError(f"benchmark.slurm: {word}", "write key:value, as in [partition:gpu,timeout_min:120]")
        found[key if key in _OWN_NAMES else f"slurm_{key}"] = int(value) if value.isdigit() else value
    return found
