"""The result of a benchmark, which can be saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.comparison.inference import COLUMNS as TESTS
from medaug.comparison.inference import Inference, adjust, infer
from medaug.comparison.job import Job
from medaug.comparison.primary import Declared, load_declarations
from medaug.comparison.scores import Scores
from medaug.csv_files import number, read_csv, write_csv
from medaug.evaluation.scores import MEAN_FOREGROUND, METRICS
from medaug.evaluation.statistics import Interval, bootstrap_table, paired_comparison, verdict
from medaug.files import write_json
from medaug.inputs import parsing, read_json

COLUMNS = (
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
EXTERNAL = "external"
"""Folder of the results on an external test cohort, in that of the benchmark."""
_AGAIN = "remove the benchmark's finished.json and run it again; jobs that are done are kept"


@dataclass(frozen=True)
class Comparison:
    """A comparison of an arm with its baseline, in one metric of one structure.

    Attributes:
        arm, baseline: names of arms.
        structure: a region or class, or `MEAN_FOREGROUND`.
        metric: name in `METRICS`.
        difference: arm minus baseline on the same cases and seeds, with its interval; if the metric has a sign, the
            difference of absolute values.
        num_seeds: number of training seeds.
        verdict: what the interval says, in words.
        floor: Dice of the trivial baseline; None in files of earlier versions.
        labelled: how many training subjects kept their labels; None: all.
        tests: tests of the difference; None in files of earlier versions.
    """

    arm: str
    baseline: str
    structure: str
    metric: str
    difference: Interval
    num_seeds: int
    verdict: str
    floor: float | None
    labelled: int | None = None
    tests: Inference | None = None

    @property
    def pair(self) -> tuple[str, str, int]:
        """What is compared: arm, baseline and number of labels (0: all)."""
        return self.arm, self.baseline, self.labelled or 0


@dataclass(frozen=True)
class Benchmark:
    """The results of all jobs of a benchmark, and how they were made.

    Attributes:
        experiment: name of the experiment.
        phantom: whether the scans are phantoms, not patients.
        smoke: whether this is a smoke run, which only shows that everything runs.
        arms: names of the arms, in the order in which they are shown.
        seeds: training seeds; every arm has one job for each.
        steps: optimisation steps of every job.
        subjects: the subject of each test case.
        floor: Dice of the trivial baseline by structure; empty in files of earlier versions.
        num_training_cases: number of labelled real scans; None in files of earlier versions.
        num_synthetic: number of synthetic pairs.
        bootstrap_seed: seed of the intervals.
        config: the resolved configuration, for information.
        scores: scores of all jobs.
        comparisons: arms against their baselines.
        labelled: how many training subjects kept their labels, in the order in which they are shown; None: all.
        draws: seeds of the random choices of those subjects; every arm and training seed has one job for each.
        declared: declarations of the primary comparison, oldest first; empty: it was never declared.
        num_training_subjects: number of labelled training subjects; None in files of earlier versions.
        evaluated: the split that was scored, "test" or "val"; the names of other attributes say "test" for both.
        pairs_of: name of the synthetic set, if the experiment's own generator did not make it.
        leak_excluded: whether it is known what the generator of the pairs saw.
        folds: the fold in which each case was scored, of a cross-validation; empty: there is none.
        groups: for each way to group test cases, such as by site, the group of each case.
        looks: how many configurations were scored on these test subjects so far; None: not counted.
        cohort: name of the external test cohort that was scored; empty: the experiment's own.
        elsewhere: the same segmenters on an external test cohort; None: there is none.
    """

    experiment: str
    phantom: bool
    smoke: bool
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    subjects: Mapping[str, str]
    floor: Mapping[str, float]
    num_training_cases: int | None
    num_synthetic: int
    bootstrap_seed: int
    config: Mapping[str, Any]
    scores: Scores
    comparisons: tuple[Comparison, ...] = ()
    labelled: tuple[int | None, ...] = (None,)
    draws: tuple[int, ...] = (0,)
    declared: tuple[Declared, ...] = ()
    num_training_subjects: int | None = None
    evaluated: str = "test"
    pairs_of: str = ""
    leak_excluded: bool = True
    looks: int | None = None
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    cohort: str = ""
    elsewhere: Benchmark | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures to show, in order: the mean over all structures, then each of them."""
        return (MEAN_FOREGROUND, *self.scores.structures)

    @property
    def num_test_subjects(self) -> int:
        """Number of test subjects."""
        return len(set(self.subjects.values()))

    @property
    def headlines(self) -> list[Comparison]:
        """The comparisons to show in a summary: those of the mean over all structures."""
        return [one for one in self.comparisons if one.structure == MEAN_FOREGROUND] or list(self.comparisons)

    @property
    def primary(self) -> Comparison | None:
        """The primary comparison; if none is declared, the mean foreground Dice of the last arm.

        With several numbers of labelled subjects, the last one counts.
        """
        wanted = self.declared[-1].primary if self.declared else None
        for one in reversed(self.comparisons):
            names = (one.arm, one.baseline, one.metric, one.structure)
            if wanted is None and names[2:] == ("dice", MEAN_FOREGROUND):
                return one
            if wanted is not None and names == (wanted.arm, wanted.baseline, wanted.metric, wanted.structure):
                return one
        return None

    @property
    def rows(self) -> list[tuple[str, str, int | None]]:
        """(title, arm, labelled) for each row in a table of arms."""
        return [(with_labels(arm, num), arm, num) for num in self.labelled for arm in self.arms]

    def table(
        self, arm: str, structure: str, metric: str, labelled: int | None = None, absolute: bool = False
    ) -> NDArray[np.float64]:
        """Scores (num_runs, num_cases) of an arm that was trained with this number of labelled subjects.

        Runs are seeds, or draws if there are several. The scores of a draw are means over its seeds, because the seeds
        of a draw share its training subjects and are not independent. With `absolute`, absolute values are returned.
        """
        draws = (None,) if labelled is None else self.draws
        by_draw = [
            self.scores.table(
                [Job(arm, seed, labelled=labelled, draw=draw) for seed in self.seeds],
                self.subjects,
                structure,
                metric,
                absolute,
                self.folds,
            )
            for draw in draws
        ]
        return by_draw[0] if len(by_draw) == 1 else np.stack([table.mean(axis=0) for table in by_draw])

    def mean(self, arm: str, structure: str, metric: str, labelled: int | None = None) -> Interval:
        """Mean of an arm's scores, with an interval over subjects and runs (see `table`)."""
        table = self.table(arm, structure, metric, labelled)
        return bootstrap_table(table, list(self.subjects.values()), self.bootstrap_seed)

    def compare(self, pairs: Sequence[tuple[str, str]]) -> Benchmark:
        """Return the benchmark with paired differences between arms, on the same test cases, labels and seeds.

        If neither arm's mean Dice is above the trivial baseline, no metric of that structure gets a verdict.

        Args:
            pairs: the comparisons to make, as (arm, baseline).
        """
        comparisons = [
            self._compare(arm, baseline, structure, metric, labelled)
            for labelled in self.labelled
            for arm, baseline in pairs
            for metric in self.scores.metrics
            for structure in self.structures
            if self.scores.measures(structure, metric)
        ]
        elsewhere = self.elsewhere
        if elsewhere is not None:
            elsewhere = replace(elsewhere, declared=self.declared).compare(pairs)
        return replace(self, comparisons=_adjusted(comparisons), elsewhere=elsewhere)

    def _compare(self, arm: str, baseline: str, structure: str, metric: str, labelled: int | None) -> Comparison:
        floor = self.floor[structure]
        learned = max(self.table(one, structure, "dice", labelled).mean() for one in (arm, baseline)) > floor
        entry = METRICS[metric]
        one, other = (self.table(name, structure, metric, labelled, entry.is_signed) for name in (arm, baseline))
        subjects, better = list(self.subjects.values()), bool(entry.higher_is_better)
        difference = paired_comparison(one, other, subjects, self.bootstrap_seed)
        primary = self.declared[-1].primary if self.declared else None
        margin = primary.margin if primary is not None and primary.metric == metric else None
        tests = infer(one - other, subjects, better, margin)
        words = verdict(difference, better, learned, p_value=tests.p_crossed, no_worse=bool(tests.no_worse))
        return Comparison(arm, baseline, structure, metric, difference, len(self.seeds), words, floor, labelled, tests)

    def save(self, folder: Path) -> list[Path]:
        """Write scores.csv, comparison.csv and summary.json; returns their paths.

        Those of an external test cohort are written to the folder `external`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        self.scores.save(folder / "scores.csv")
        save_comparisons(folder / "comparison.csv", self.comparisons)
        summary = {
            "experiment": self.experiment,
            "phantom": self.phantom,
            "smoke": self.smoke,
            "arms": list(self.arms),
            "seeds": list(self.seeds),
            "labelled": list(self.labelled),
            "draws": list(self.draws),
            "steps": self.steps,
            "num_training_cases": self.num_training_cases,
            "num_training_subjects": self.num_training_subjects,
            "num_test_subjects": self.num_test_subjects,
            "num_test_cases": len(self.subjects),
            "subjects": dict(self.subjects),
            "classes": list(self.scores.structures),
            "floor": dict(self.floor),
            "num_synthetic": self.num_synthetic,
            "evaluated": self.evaluated,
            "pairs_of": self.pairs_of,
            "leak_excluded": self.leak_excluded,
            "looks": self.looks,
            "groups": {by: dict(groups) for by, groups in self.groups.items()},
            "folds": dict(self.folds),
            "primary": [one.to_mapping() for one in self.declared],
            "cohort": self.cohort,
            "config": dict(self.config),
        }
        write_json(folder / "summary.json", summary)
        others = [] if self.elsewhere is None else self.elsewhere.save(folder / EXTERNAL)
        return [*(folder / name for name in ("scores.csv", "comparison.csv", "summary.json")), *others]

    @classmethod
    def load(cls, folder: Path) -> Benchmark:
        """Read what `save` of this or an earlier version wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        path, scores = folder / "summary.json", folder / "scores.csv"
        summary = read_json(path, _AGAIN)
        with parsing(path, _AGAIN):
            for key in ("arms", "classes"):
                if not all(isinstance(name, str) for name in summary[key]):
                    raise TypeError(f"{key} is {summary[key]!r:.60}")
            config = dict(summary.get("config") or {})
            return cls(
                experiment=str(summary["experiment"]),
                phantom=bool(summary["phantom"]),
                smoke=bool(summary.get("smoke")),
                arms=tuple(summary["arms"]),
                seeds=tuple(int(seed) for seed in summary["seeds"]),
                steps=int(summary["steps"]),
                subjects={case: str(subject) for case, subject in summary["subjects"].items()},
                floor={name: float(dice) for name, dice in (summary.get("floor") or {}).items()},
                num_training_cases=summary.get("num_training_cases"),
                num_synthetic=int(summary["num_synthetic"]),
                bootstrap_seed=int((config.get("benchmark") or {}).get("bootstrap_seed", 0)),
                config=config,
                scores=Scores.load([scores], summary["classes"], scores, _AGAIN),
                comparisons=tuple(load_comparisons(folder / "comparison.csv", len(summary["subjects"]))),
                labelled=tuple(None if num is None else int(num) for num in summary.get("labelled", [None])),
                draws=tuple(int(draw) for draw in summary.get("draws", [0])),
                declared=load_declarations(summary.get("primary", []), path),
                num_training_subjects=summary.get("num_training_subjects"),
                evaluated=str(summary.get("evaluated", "test")),
                pairs_of=str(summary.get("pairs_of", "")),
                leak_excluded=bool(summary.get("leak_excluded", True)),
                looks=summary.get("looks"),
                groups={by: {c: str(g) for c, g in of.items()} for by, of in (summary.get("groups") or {}).items()},
                folds={case: int(fold) for case, fold in (summary.get("folds") or {}).items()},
                cohort=str(summary.get("cohort", "")),
                elsewhere=cls.load(folder / EXTERNAL) if (folder / EXTERNAL / "summary.json").exists() else None,
            )


def with_labels(arm: str, labelled: int | None) -> str:
    """Name of an arm, and the number of labelled training subjects if labels were hidden."""
    return arm if labelled is None else f"{arm}, {labelled} labelled"


def _adjusted(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Adjust p-values for the number of comparisons, within each metric and structure."""
    found = list(comparisons)
    for key in {(one.metric, one.structure) for one in comparisons}:
        places = [i for i, one in enumerate(found) if (one.metric, one.structure) == key and one.tests is not None]
        tests = adjust([one.tests for one in (found[i] for i in places) if one.tests is not None])
        for place, adjusted in zip(places, tests, strict=True):
            found[place] = replace(found[place], tests=adjusted)
    return tuple(found)


def save_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write comparison.csv, one comparison per row. There is a column `labelled` only if labels were hidden."""
    extra = ("labelled",) if any(one.labelled is not None for one in comparisons) else ()
    rows: list[tuple[object, ...]] = []
    for one in comparisons:
        difference = one.difference
        numbers = (difference.mean, difference.low, difference.high, difference.clusters, one.num_seeds)
        row = (one.arm, one.baseline, one.structure, one.metric, *numbers, one.verdict, one.floor)
        tests = one.tests.cells() if one.tests is not None else [None] * len(TESTS)
        rows.append((*row, *(getattr(one, name) for name in extra), *tests))
    write_csv(path, (*COLUMNS, *extra, *TESTS), rows)


def load_comparisons(path: Path, num_cases: int) -> list[Comparison]:
    """Read what `save_comparisons` wrote.

    Args:
        path: path of comparison.csv.
        num_cases: number of test cases in every comparison.

    Raises:
        UserError: the file is missing or damaged.
    """
    comparisons = []
    for row in read_csv(path, COLUMNS[:-1], _AGAIN):
        mean, low, high = (number(row[key], path, _AGAIN, "nan") for key in ("mean_difference", "low", "high"))
        subjects, seeds = (int(number(row[key], path, _AGAIN)) for key in ("num_subjects", "num_seeds"))
        floor = number(row["floor"], path, _AGAIN) if row.get("floor") else None
        difference = Interval(mean, low, high, num_cases, subjects)
        names = (row["arm"], row["baseline"], row["class"], row["metric"])
        labelled = int(number(row["labelled"], path, _AGAIN)) if row.get("labelled") else None
        with parsing(path, _AGAIN):
            tests = Inference.from_row(row)
        comparisons.append(Comparison(*names, difference, seeds, row["verdict"], floor, labelled, tests))
    return comparisons
