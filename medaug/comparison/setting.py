"""What all jobs of a benchmark share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medaug.comparison.arms import ARMS
from medaug.comparison.external import refuse_held_out_masks
from medaug.comparison.inputs import Inputs
from medaug.comparison.job import Job
from medaug.comparison.jobs import TestSet, run_job
from medaug.comparison.labels import TrainingScans
from medaug.comparison.material import Material
from medaug.data.cases import ModelCase, without_doubt
from medaug.data.contents import refuse_copies
from medaug.errors import UserError
from medaug.evaluation.scores import check_scoring
from medaug.options import Options
from medaug.segmentation.backends import BACKENDS
from medaug.segmentation.protocol import Problem, Segmenter, SoftSegmenter, TrainingSet
from medaug.segmentation.teachers import Teachers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What all jobs of a benchmark share.

    Attributes:
        scans: the training scans with their labels.
        synthetic: the synthetic pairs.
        test: the scans that are scored: the test split, or the validation split to choose settings.
        problem: what is to be segmented.
        options: options of the stage; `benchmark`, `arms`, `pseudo` and `segmenter` are read.
        elsewhere: scans of an external test cohort, which are scored as well; None: there are none.
    """

    scans: TrainingScans
    synthetic: Sequence[ModelCase]
    test: TestSet
    problem: Problem
    options: Options
    elsewhere: TestSet | None = None

    @classmethod
    def prepare(cls, inputs: Inputs, scans: TrainingScans, options: Options, jobs: Iterable[Job]) -> Setting:
        """Load the scans, and check that every job can run.

        Args:
            inputs: generator, pairs and cohort.
            scans: the training scans with their labels.
            options: options of the stage.
            jobs: all jobs.

        Raises:
            UserError: there is no labelled scan to score, too few training subjects have labels, the generator saw
                labels that a job with pairs or with its weights hides, or two scans of different splits are equal.
        """
        cohort, split = inputs.cohort, options.benchmark.evaluate
        if not inputs.labelled(split):
            raise UserError(
                f"no labelled {split} subjects", f"raise data.{split}_fraction and train again", path=cohort.root
            )
        if unscored := len(cohort.split(split)) - len(inputs.labelled(split)):
            log.warning("%d %s scans have no label and are not scored", unscored, split)
        check_scoring(options.scoring, cohort.schema)
        for job in jobs:
            scans.kept(job)  # raises an error if there are too few labels, before anything is trained
            if ARMS[job.arm].synthetic or ARMS[job.arm].pretrained:
                scans.refuse_seen(job)
            if ARMS[job.arm].pretrained and (job.fold is not None or inputs.external is not None):
                raise UserError(
                    f"{job}: it begins with the weights of the experiment's generator, which "
                    + ("saw subjects of this fold" if job.fold is not None else "did not make benchmark.pairs"),
                    "leave the arm out",
                )
        synthetic = inputs.load_synthetic()
        if options.benchmark.confidence and inputs.pairs is not None:
            space, weight = inputs.card.preprocessing, options.benchmark.doubt_weight
            synthetic = without_doubt(inputs.pairs.manifest, synthetic, space, weight)
        test = TestSet(cohort, inputs.load_real(split), options.scoring)
        if inputs.external is not None:
            refuse_held_out_masks(test.cases, synthetic)
        groups = {"train": scans.labelled, split: test.cases, "synthetic": synthetic}
        elsewhere = None
        if inputs.elsewhere is not None:
            elsewhere = TestSet(inputs.elsewhere.manifest, inputs.load_elsewhere(), options.scoring)
            groups["external test"] = elsewhere.cases
            refuse_held_out_masks(elsewhere.cases, synthetic)
        refuse_copies(groups)
        problem = Problem(cohort.modalities, cohort.schema, inputs.card.preprocessing, inputs.checkpoint)
        return cls(scans, synthetic, test, problem, options, elsewhere)

    def run(self, job: Job, folder: Path) -> None:
        """Train and score the segmenter of a job, unless it is done; see `run_job`."""
        make = partial(self.training_set, job, folder)
        run_job(job, self.segmenter(job), make, self.options.benchmark.steps, self.test, folder, self.elsewhere)

    def segmenter(self, job: Job) -> Segmenter:
        """The untrained segmenter of a job."""
        backend = ARMS[job.arm].backend or self.options.benchmark.backend
        return BACKENDS[backend].make(self.problem, self.options.segmenter)

    def training_set(self, job: Job, folder: Path) -> TrainingSet:
        """What the segmenter of a job trains on.

        Args:
            job: the job.
            folder: folder of the benchmark; results that several jobs use are stored there.

        Raises:
            UserError: see `Arm.training_set`.
        """
        pseudo, schema = self.options.pseudo, self.scans.cohort.schema
        material = Material(
            self.scans.real(job),
            self.synthetic,
            self.options.arms.synthetic_share,
            schema,
            self.scans.unlabelled(job),
            job.seed,
            folder / "deformations",
            Teachers(
                partial(self._teach, job),
                pseudo.teachers,
                pseudo.plausibility,
                schema,
                job.seed,
                pseudo.rounds,
                self.problem if pseudo.atlases else None,
            ),
            pseudo.share,
            pseudo.finish,
            job.folder(folder / "pseudo_labels"),
            self.options.arms.synthetic_finish,
            pseudo.cutmix,
        )
        return ARMS[job.arm].training_set(material)

    def _teach(self, job: Job, training_set: TrainingSet, seed: int) -> SoftSegmenter:
        """Train a teacher for a job, with the backend of its own segmenter and, unless told otherwise, its steps."""
        settings, teacher = self.options.benchmark, self.segmenter(job)
        if not isinstance(teacher, SoftSegmenter):
            raise UserError(
                f"{job}: benchmark.backend={settings.backend} gives no probabilities, which teachers need",
                "leave the arm out",
            )
        teacher.fit(training_set, self.options.pseudo.steps or settings.steps, seed, f"{job}, teacher")
        return teacher
