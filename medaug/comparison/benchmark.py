"""All jobs of a benchmark, from the inputs to the compared scores."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medaug.comparison.arms import ARMS, pairs_to_compare
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.jobs import TestSet, gather, run_job
from medaug.comparison.labels import TrainingScans, label_counts
from medaug.comparison.material import Material
from medaug.comparison.results import Benchmark
from medaug.data.cases import ModelCase
from medaug.data.contents import refuse_copies
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.scores import check_scoring
from medaug.options import Options
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem, SoftSegmenter, TrainingSet

log = logging.getLogger(__name__)


def all_jobs(options: Options) -> list[Job]:
    """Every arm with every number of labels, draw and seed. With all labels there is nothing to draw."""
    settings = options.benchmark
    return [
        Job(arm, seed, labelled=labelled, draw=draw)
        for labelled in label_counts(settings)
        for draw in ([None] if labelled is None else settings.draws)
        for seed in settings.seeds
        for arm in options.arms.names
    ]


def run_benchmark(inputs: Inputs, scans: TrainingScans, options: Options, folder: Path) -> Benchmark:
    """Train and score the segmenters of all jobs that are not done yet, and compare the arms.

    Args:
        inputs: generator, pairs and cohort.
        scans: the training scans with their labels.
        options: options of the stage; `benchmark`, `arms`, `segmenter` and `scoring` are read.
        folder: folder of the benchmark; the jobs save their scores there.

    Raises:
        UserError: there is no labelled test scan, too few training subjects have labels, the generator saw labels that
            a job with pairs hides, two scans of different splits are equal, a training failed, or a scan changed while
            the benchmark ran.
    """
    cohort, settings = inputs.cohort, options.benchmark
    if not inputs.labelled("test"):
        raise UserError("no labelled test subjects", "raise data.test_fraction and train again", path=cohort.root)
    if unscored := len(cohort.split("test")) - len(inputs.labelled("test")):
        log.warning("%d test scans have no label and are not scored", unscored)
    check_scoring(options.scoring, cohort.schema)
    jobs = all_jobs(options)
    for job in jobs:
        scans.kept(job)  # too few labels are refused before anything is trained
        if ARMS[job.arm].synthetic:
            scans.refuse_seen(job)
    synthetic, content = inputs.load_synthetic(), scans.identity.get("labels", inputs.content)
    test = TestSet(cohort, inputs.load_real("test"), options.scoring)
    refuse_copies({"train": scans.labelled, "test": test.cases, "synthetic": synthetic})
    problem = Problem(cohort.modalities, cohort.schema, inputs.card.preprocessing)

    for job in jobs:
        segmenter = BACKENDS[settings.backend].make(problem, options.segmenter)
        make = partial(_training_set, job, scans, synthetic, partial(_teach, job, problem, options), options, folder)
        run_job(job, segmenter, make, settings.steps, test, folder)
    # Jobs read the label files while they run, so check that these have not changed.
    if scans.digest() != content:
        raise UserError("scans changed while the benchmark ran", "give overwrite=true to begin again", path=cohort.root)
    nodes = {name: dataclasses.asdict(getattr(options, name)) for name in ("benchmark", "arms", "segmenter", "scoring")}
    labels = [np.asarray(case.label) for case in scans.labelled]
    subjects = [case.case.subject for case in scans.labelled]
    result = Benchmark(
        experiment=options.experiment,
        phantom=cohort.phantom,
        smoke="smoke" in (options.preset, inputs.card.preset),
        arms=tuple(options.arms.names),
        seeds=tuple(settings.seeds),
        steps=settings.steps,
        subjects={case.case.name: case.case.subject for case in test.cases},
        floor=trivial_dice(labels, subjects, cohort.schema),
        num_training_cases=len(scans.labelled),
        num_synthetic=len(synthetic),
        bootstrap_seed=settings.bootstrap_seed,
        config=nodes | {"training": inputs.card.options},
        scores=gather(jobs, cohort.schema.structures(), folder),
        labelled=tuple(label_counts(settings)),
        draws=tuple(settings.draws),
    )
    return result.compare(pairs_to_compare(options.arms.names))


def _training_set(
    job: Job,
    scans: TrainingScans,
    synthetic: Sequence[ModelCase],
    teach: Callable[[TrainingSet, int], SoftSegmenter],
    options: Options,
    folder: Path,
) -> TrainingSet:
    """What the segmenter of a job trains on."""
    material = Material(
        scans.real(job),
        synthetic,
        options.arms.synthetic_share,
        scans.cohort.schema,
        scans.unlabelled(job),
        job.seed,
        folder / "deformations",
        teach,
    )
    return ARMS[job.arm].training_set(material)


def _teach(job: Job, problem: Problem, options: Options, training_set: TrainingSet, seed: int) -> SoftSegmenter:
    """Train a teacher for a job, with the backend and steps of its own segmenter."""
    settings = options.benchmark
    teacher = BACKENDS[settings.backend].make(problem, options.segmenter)
    if not isinstance(teacher, SoftSegmenter):
        raise UserError(
            f"{job}: benchmark.backend={settings.backend} gives no probabilities, which teachers need",
            "leave the arm out",
        )
    teacher.fit(training_set, settings.steps, seed, f"{job}, teacher")
    return teacher
