"""Runs jobs: trains a segmenter, scores it on the test cases and saves the scores. A finished job is not repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.manifest import Manifest
from medaug.comparison.job import REMOVE, Job
from medaug.comparison.planes import save_planes
from medaug.comparison.scores import Scores
from medaug.data.cases import ModelCase, read_case
from medaug.evaluation.scores import segmentation_scores
from medaug.options import ScoringOptions
from medaug.pictures.figures import busiest_slice
from medaug.segmentation.protocol import Segmenter, TrainingSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """Labelled cases that nothing was trained on, scored on their own grids against the label files.

    Attributes:
        cohort: manifest of the cases.
        cases: the cases in model space.
        scoring: tolerance and lesions.
    """

    __test__ = False  # tell pytest that this is not a test class

    cohort: Manifest
    cases: Sequence[ModelCase]
    scoring: ScoringOptions = field(default_factory=ScoringOptions)

    def score(
        self, job: Job, segmenter: Segmenter, path: Path, planes: dict[str, NDArray[np.uint8]] | None = None
    ) -> Scores:
        """Score a trained segmenter.

        Args:
            job: job of the segmenter.
            segmenter: trained segmenter.
            path: file that the scores will be saved to; messages name it.
            planes: receives a slice of every prediction, the one with the most foreground in the human label.
        """
        values, probabilities_of = {}, getattr(segmenter, "probabilities", None)
        for case in self.cases:
            _, truth = read_case(self.cohort, case.case)
            assert truth is not None
            prediction = segmenter.predict(case)
            probabilities = probabilities_of(case) if probabilities_of is not None else None
            spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
            scored = segmentation_scores(prediction, truth, spacing, self.cohort.schema, self.scoring, probabilities)
            for structure, metric, value in scored:
                values[job, case.case.name, structure, metric] = value
            if planes is not None:
                planes[case.case.name] = prediction[..., busiest_slice(truth)].astype(np.uint8)
        return Scores(values, tuple(self.cohort.schema.structures()), path, REMOVE)


def run_job(
    job: Job,
    segmenter: Segmenter,
    make: Callable[[], TrainingSet],
    steps: int,
    test: TestSet,
    folder: Path,
    elsewhere: TestSet | None = None,
) -> None:
    """Train the job's segmenter and score it, unless the job is done already.

    Args:
        job: the job.
        segmenter: untrained segmenter.
        make: makes the training set; called only if the job is not done.
        steps: optimisation steps.
        test: what the segmenter is scored on.
        folder: folder of the benchmark.
        elsewhere: an external test cohort, which is scored as well; None: there is none.

    Raises:
        UserError: the training failed, or the scores on disk are not what the job wrote.
    """
    path = job.scores(folder)
    if job.is_done(folder):
        job.refuse_edited(folder)
        log.info("%s: already done", job)
        return
    segmenter.fit(make(), steps, job.seed, str(job))
    planes: dict[str, NDArray[np.uint8]] = {}
    scores = test.score(job, segmenter, path, planes)
    save_planes(path.with_name("planes.npz"), planes)
    if elsewhere is not None:
        elsewhere.score(job, segmenter, job.scores_elsewhere(folder)).save(job.scores_elsewhere(folder))
    scores.save(path)
    job.mark_done(folder)
    dice = np.mean([value for (*_, metric), value in scores.values.items() if metric == "dice"])
    log.info("%s: mean Dice %.3f on %d test scans", job, dice, len(test.cases))


def gather(jobs: Iterable[Job], structures: Iterable[str], folder: Path, elsewhere: bool = False) -> Scores:
    """Read the scores of all jobs, on the experiment's own test scans or on an external test cohort.

    Raises:
        UserError: the scores of a job are missing, or not what it wrote.
    """
    jobs = list(jobs)
    for job in jobs:
        job.refuse_edited(folder)
    paths = [job.scores_elsewhere(folder) if elsewhere else job.scores(folder) for job in jobs]
    return Scores.load(paths, structures, folder / paths[0].name, REMOVE)
