"""Plans and runs all jobs of a benchmark, compares their scores, and saves the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medaug.comparison.arms import pairs_to_compare
from medaug.comparison.breakdown import Group, case_groups, save_groups
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.jobs import gather
from medaug.comparison.labels import TrainingScans, label_counts
from medaug.comparison.plan import ArmPlan, plan_jobs
from medaug.comparison.results import Benchmark
from medaug.comparison.setting import Setting
from medaug.comparison.shown_cases import show_cases
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.options import Options


def all_jobs(options: Options) -> list[Job]:
    """One job for every arm, fold, number of labels, draw and seed; with all labels there are no draws."""
    settings = options.benchmark
    return [
        Job(arm, seed, fold, labelled, draw)
        for fold in ([None] if settings.folds is None else range(settings.folds))
        for labelled in label_counts(settings)
        for draw in ([None] if labelled is None else settings.draws)
        for seed in settings.seeds
        for arm in options.arms.names
    ]


def prepare_folds(inputs: Inputs, scans: TrainingScans, options: Options) -> dict[int | None, Setting]:
    """The setting of each fold, or that of the cohort's own splits under None.

    Args:
        inputs: cohort and pairs.
        scans: the training scans of the cohort's own splits, with their labels.
        options: options of the stage.

    Raises:
        UserError: see `Setting.prepare`.
    """
    jobs = all_jobs(options)
    if not inputs.folds:
        return {None: Setting.prepare(inputs, scans, options, jobs)}
    return {
        fold: Setting.prepare(
            one,
            TrainingScans.find(one, label_counts(options.benchmark)),
            options,
            [job for job in jobs if job.fold == fold],
        )
        for fold, one in inputs.folds.items()
    }


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
    settings_of, content = prepare_folds(inputs, scans, options), scans.identity.get("labels", inputs.content)
    for job in jobs:
        settings_of[job.fold].run(job, folder)
    # Jobs read the label files while they run, so check that the files are still the same.
    if scans.digest() != content:
        raise UserError("scans changed while the benchmark ran", "give overwrite=true to begin again", path=cohort.root)
    names = ("benchmark", "arms", "pseudo", "segmenter", "scoring")
    nodes = {name: dataclasses.asdict(getattr(options, name)) for name in names}
    labels = [np.asarray(case.label) for case in scans.labelled]
    subjects = [case.case.subject for case in scans.labelled]
    first = next(iter(settings_of.values()))
    sets = [one.scans.inputs.external for one in settings_of.values() if one.scans.inputs.external is not None]
    result = Benchmark(
        experiment=options.experiment,
        phantom=cohort.phantom,
        smoke="smoke" in (options.preset, inputs.card.preset),
        arms=tuple(options.arms.names),
        seeds=tuple(settings.seeds),
        steps=settings.steps,
        subjects={case.case.name: case.case.subject for one in settings_of.values() for case in one.test.cases},
        floor=trivial_dice(labels, subjects, cohort.schema),
        num_training_cases=len(first.scans.labelled),
        num_synthetic=len(first.synthetic),
        bootstrap_seed=settings.bootstrap_seed,
        config=nodes | {"training": inputs.card.options},
        scores=gather(jobs, cohort.schema.structures(), folder),
        labelled=tuple(label_counts(settings)),
        draws=tuple(settings.draws),
        num_training_subjects=len({case.case.subject for case in first.scans.labelled}),
        evaluated=settings.evaluate,
        pairs_of=next((one.name for one in sets), ""),
        leak_excluded=all(one.seen is not None for one in sets),
        groups=case_groups(
            [c for one in settings_of.values() for c in one.test.cases], first.problem.preprocessing.spacing
        ),
        folds={c.case.name: k for k, one in settings_of.items() if k is not None for c in one.test.cases},
    )
    result = replace(result, elsewhere=_elsewhere(result, first, jobs, folder))
    return result.compare(pairs_to_compare(options.arms.names))


def plan_benchmark(inputs: Inputs, scans: TrainingScans, options: Options, folder: Path | None) -> list[ArmPlan]:
    """The jobs of every arm and the time that they would take; see `prepare_folds` and `plan_jobs`."""
    return plan_jobs(prepare_folds(inputs, scans, options), all_jobs(options), folder)


def save_results(result: Benchmark, groups: Sequence[Group], inputs: Inputs, folder: Path) -> list[Path]:
    """Save scores, comparisons, groups and the picture of some scans; returns the files that must not be edited."""
    show_cases(result, inputs.cohort, folder)
    return [*result.save(folder), save_groups(folder / "breakdown.csv", result, groups)]


def _elsewhere(result: Benchmark, setting: Setting, jobs: Sequence[Job], folder: Path) -> Benchmark | None:
    """The results on the external test cohort; None if there is none.

    Raises:
        UserError: a scan of it changed while the benchmark ran.
    """
    cohort, test = setting.scans.inputs.elsewhere, setting.elsewhere
    if cohort is None or test is None:
        return None
    if not cohort.is_unchanged(setting.scans.inputs.cache):
        raise UserError(
            "scans changed while the benchmark ran", "give overwrite=true to begin again", path=cohort.manifest.root
        )
    return replace(
        result,
        cohort=cohort.manifest.name,
        phantom=cohort.manifest.phantom,
        subjects={case.case.name: case.case.subject for case in test.cases},
        scores=gather(jobs, result.scores.structures, folder, elsewhere=True),
        groups={},
    )
