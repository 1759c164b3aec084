"""Runs all jobs of a benchmark and compares their scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from medaug.comparison.arms import pairs_to_compare
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.jobs import gather
from medaug.comparison.labels import TrainingScans, label_counts
from medaug.comparison.results import Benchmark
from medaug.comparison.setting import Setting
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.options import Options


def all_jobs(options: Options) -> list[Job]:
    """One job for every arm, number of labels, draw and seed; with all labels there are no draws."""
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
        options: options of the stage; this function reads `benchmark`, `arms`, `segmenter` and `scoring`.
        folder: folder of the benchmark; the jobs save their scores there.

    Raises:
        UserError: see `Setting.prepare`; or a training failed, or a scan changed while the benchmark ran.
    """
    cohort, settings, jobs = inputs.cohort, options.benchmark, all_jobs(options)
    setting, content = Setting.prepare(inputs, scans, options, jobs), scans.identity.get("labels", inputs.content)
    for job in jobs:
        setting.run(job, folder)
    # Jobs read the label files while they run, so check that the files are still the same.
    if scans.digest() != content:
        raise UserError("scans changed while the benchmark ran", "give overwrite=true to begin again", path=cohort.root)
    names = ("benchmark", "arms", "pseudo", "segmenter", "scoring")
    nodes = {name: dataclasses.asdict(getattr(options, name)) for name in names}
    labels = [np.asarray(case.label) for case in scans.labelled]
    subjects = [case.case.subject for case in scans.labelled]
    result = Benchmark(
        experiment=options.experiment,
        phantom=cohort.phantom,
        smoke="smoke" in (options.preset, inputs.card.preset),
        arms=tuple(options.arms.names),
        seeds=tuple(settings.seeds),
        steps=settings.steps,
        subjects={case.case.name: case.case.subject for case in setting.test.cases},
        floor=trivial_dice(labels, subjects, cohort.schema),
        num_training_cases=len(scans.labelled),
        num_synthetic=len(setting.synthetic),
        bootstrap_seed=settings.bootstrap_seed,
        config=nodes | {"training": inputs.card.options},
        scores=gather(jobs, cohort.schema.structures(), folder),
        labelled=tuple(label_counts(settings)),
        draws=tuple(settings.draws),
        num_training_subjects=len(set(subjects)),
        evaluated=settings.evaluate,
        pairs_of="" if inputs.external is None else inputs.external.name,
        leak_excluded=inputs.external is None or inputs.external.seen is not None,
    )
    return result.compare(pairs_to_compare(options.arms.names))
