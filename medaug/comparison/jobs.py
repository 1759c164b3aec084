"""One job is one segmenter: an arm and a seed, in a folder of its own, done once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medaug.cohort.manifest import Manifest
from medaug.csv_files import number, read_csv, write_csv
from medaug.data.cases import ModelCase, read_case
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.evaluation.scores import MEAN_FOREGROUND, segmentation_scores
from medaug.evaluation.statistics import paired_comparison, verdict
from medaug.files import atomic_write, file_sha256
from medaug.inputs import parsing, read_text
from medaug.options import SegmenterOptions
from medaug.segmentation.segmenter import Diet, segment, train_segmenter

log = logging.getLogger(__name__)

SCORE_COLUMNS = ("arm", "seed", "case", "class", "metric", "value")
COMPARISON_COLUMNS = (
    "arm",
    "baseline",
    "class",
    "metric",
    "mean_difference",
    "low",
    "high",
    "num_subjects",
    "num_seeds",
    "verdict",
    "floor",
)
_REMOVE = "remove the scores.csv of that arm and seed below jobs/, and run the benchmark again to repeat the job"
HIGHER_IS_BETTER = {"dice": True, "hd95": False}


@dataclass(frozen=True)
class Job:
    """A segmenter to be trained and scored."""

    arm: str
    seed: int

    def scores(self, folder: Path) -> Path:
        """Where its scores go."""
        return folder / "jobs" / self.arm.replace("+", "_") / f"seed_{self.seed}" / "scores.csv"

    def is_done(self, folder: Path) -> bool:
        """Whether its scores are there with their digest."""
        path = self.scores(folder)
        return path.is_file() and _digest_file(path).is_file()

    def refuse_edited(self, folder: Path) -> None:
        """Hold its scores against their digest, which lies beside them in the form that `sha256sum -c` reads.

        Raises:
            UserError: they are not what the job wrote.
        """
        path = self.scores(folder)
        if not self.is_done(folder) or read_text(_digest_file(path)) != _digest_line(path):
            raise UserError(f"{path}: was changed after the job wrote it, or its digest was; {_REMOVE}")


def run_job(
    job: Job,
    diet: Diet,
    steps: int,
    options: SegmenterOptions,
    test: Sequence[ModelCase],
    manifest: Manifest,
    preprocessing: Preprocessing,
    folder: Path,
) -> None:
    """Train the job's segmenter and score it on the (labelled) test cases' own grids, unless that is done already."""
    path = job.scores(folder)
    if job.is_done(folder):
        job.refuse_edited(folder)
        log.info("%s, seed %d: done already", job.arm, job.seed)
        return
    name = f"{job.arm}, seed {job.seed}"
    net = train_segmenter(diet, manifest.schema.num_classes, options, steps, job.seed, name)
    rows = []
    for case in test:
        _, truth = read_case(manifest, case.case)
        assert truth is not None
        prediction = preprocessing.invert_label(segment(net, np.array(case.image)), case.placement)
        spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
        scores = segmentation_scores(prediction, truth, spacing, manifest.schema)
        rows += [(job.arm, job.seed, case.case.name, *score) for score in scores]
    write_csv(path, SCORE_COLUMNS, rows)
    with atomic_write(_digest_file(path)) as temporary:  # last: a killed job is done again
        temporary.write_text(_digest_line(path))
    dice = np.mean([row[5] for row in rows if row[4] == "dice"])
    log.info("%s: mean Dice %.3f on %d test scans", name, dice, len(test))


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest_line(path: Path) -> str:
    return f"{file_sha256(path)}  {path.name}\n"


def gather(jobs: Iterable[Job], folder: Path) -> list[dict[str, str]]:
    """All jobs' rows, which are also written to `scores.csv`.

    Raises:
        UserError: the scores of a job are gone, or not what it wrote.
    """
    jobs = list(jobs)
    for job in jobs:
        job.refuse_edited(folder)
    rows = [row for job in jobs for row in read_csv(job.scores(folder), SCORE_COLUMNS, _REMOVE)]
    write_csv(folder / "scores.csv", SCORE_COLUMNS, [tuple(row.values()) for row in rows])
    return rows


def compare(
    rows: Sequence[dict[str, str]],
    pairs: Iterable[tuple[str, str]],
    seeds: Sequence[int],
    subjects: dict[str, str],
    classes: Sequence[str],
    bootstrap_seed: int,
    floor: Mapping[str, float],
    path: Path,
) -> None:
    """Paired differences between arms on the same test cases and seeds, to `comparison.csv`.

    Args:
        rows: of `scores.csv`.
        pairs: (arm, baseline).
        seeds: training seeds.
        subjects: the subject of each test case.
        classes: names of the structures that were scored; their mean comes first.
        bootstrap_seed: of the intervals.
        floor: Dice of the trivial baseline by class (`medaug.evaluation.baseline`); where neither arm's mean Dice is
            above it, there is no verdict about either metric.
        path: CSV to write.
    """
    scores = path.with_name("scores.csv")
    values = {
        (r["arm"], r["class"], r["metric"], r["seed"], r["case"]): number(r["value"], scores, _REMOVE) for r in rows
    }

    def table(arm: str, name: str, metric: str) -> np.ndarray:
        if name == MEAN_FOREGROUND:
            return np.mean([table(arm, one, metric) for one in classes], axis=0)
        with parsing(scores, _REMOVE):
            return np.array([[values[arm, name, metric, str(seed), case] for case in subjects] for seed in seeds])

    lines = []
    for arm, baseline in pairs:
        for metric, higher in HIGHER_IS_BETTER.items():
            for name in (MEAN_FOREGROUND, *classes):
                learned = max(table(one, name, "dice").mean() for one in (arm, baseline)) > floor[name]
                interval = paired_comparison(
                    table(arm, name, metric),
                    table(baseline, name, metric),
                    list(subjects.values()),
                    bootstrap_seed,
                )
                lines.append(
                    (
                        arm,
                        baseline,
                        name,
                        metric,
                        interval.mean,
                        interval.low,
                        interval.high,
                        interval.clusters,
                        len(seeds),
                        verdict(interval, higher, learned),
                        floor[name],
                    )
                )
    write_csv(path, COMPARISON_COLUMNS, lines)
