"""All jobs of a benchmark, from the inputs to the compared scores."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from medaug.comparison.arms import ARMS, pairs_to_compare
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.jobs import TestSet, gather, run_job
from medaug.comparison.results import Benchmark
from medaug.data.contents import case_contents, cohort_digest, refuse_copies
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.scores import check_scoring
from medaug.options import Options
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem

log = logging.getLogger(__name__)


def all_jobs(options: Options) -> list[Job]:
    """Every arm with every seed."""
    return [Job(arm, seed) for seed in options.benchmark.seeds for arm in options.arms.names]


def run_benchmark(inputs: Inputs, options: Options, folder: Path) -> Benchmark:
    """Train and score the segmenters of all jobs that are not done yet, and compare the arms.

    Args:
        inputs: generator, pairs and cohort.
        options: options of the stage; `benchmark`, `arms`, `segmenter` and `scoring` are read.
        folder: folder of the benchmark; the jobs save their scores there.

    Raises:
        UserError: there is no labelled test scan, two scans of different splits are equal, a training failed, or a
            scan changed while the benchmark ran.
    """
    cohort, settings = inputs.cohort, options.benchmark
    if not inputs.labelled("test"):
        raise UserError("no labelled test subjects", "raise data.test_fraction and train again", path=cohort.root)
    if unscored := len(cohort.split("test")) - len(inputs.labelled("test")):
        log.warning("%d test scans have no label and are not scored", unscored)
    check_scoring(options.scoring, cohort.schema)
    real, synthetic = inputs.load_real("train"), inputs.load_synthetic()
    test = TestSet(cohort, inputs.load_real("test"), options.scoring)
    refuse_copies({"train": real, "test": test.cases, "synthetic": synthetic})
    problem = Problem(cohort.modalities, cohort.schema, inputs.card.preprocessing)
    jobs = all_jobs(options)
    for job in jobs:
        training_set = ARMS[job.arm].training_set(real, synthetic, options.arms.synthetic_share)
        segmenter = BACKENDS[settings.backend].make(problem, options.segmenter)
        run_job(job, segmenter, training_set, settings.steps, test, folder)
    # Jobs read the label files while they run, so check that these have not changed.
    if cohort_digest(cohort, case_contents(cohort, cohort.cases, inputs.cache)) != inputs.content:
        raise UserError("scans changed while the benchmark ran", "give overwrite=true to begin again", path=cohort.root)
    nodes = {name: dataclasses.asdict(getattr(options, name)) for name in ("benchmark", "arms", "segmenter", "scoring")}
    labels, subjects = [np.asarray(case.label) for case in real], [case.case.subject for case in real]
    result = Benchmark(
        experiment=options.experiment,
        phantom=cohort.phantom,
        smoke="smoke" in (options.preset, inputs.card.preset),
        arms=tuple(options.arms.names),
        seeds=tuple(settings.seeds),
        steps=settings.steps,
        subjects={case.case.name: case.case.subject for case in test.cases},
        floor=trivial_dice(labels, subjects, cohort.schema),
        num_training_cases=len(real),
        num_synthetic=len(synthetic),
        bootstrap_seed=settings.bootstrap_seed,
        config=nodes | {"training": inputs.card.options},
        scores=gather(jobs, cohort.schema.structures(), folder),
    )
    return result.compare(pairs_to_compare(options.arms.names))
