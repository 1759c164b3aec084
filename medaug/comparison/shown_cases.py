"""The test scans that a reader should see: where an arm gains most, where it loses most, and the one in the middle.

Each job keeps one slice per prediction, the one with the most true foreground, in `planes.npz` beside its scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medaug.cohort.manifest import Manifest
from medaug.comparison.job import Job
from medaug.comparison.planes import load_planes
from medaug.comparison.results import Benchmark
from medaug.data.cases import read_case
from medaug.evaluation.scores import METRICS
from medaug.pictures.figures import CaseRow, busiest_slice, outlined_cases, save_figure


def chosen_cases(benchmark: Benchmark) -> list[tuple[str, str, float, float]]:
    """(what it shows, case, score of the baseline, score of the arm) of three test scans, or fewer if there are fewer.

    They have the largest, the middle and the smallest gain of the primary comparison, averaged over seeds and draws.
    """
    primary = benchmark.primary
    if primary is None:
        return []
    metric, cases = METRICS[primary.metric], list(benchmark.subjects)
    arm, baseline = (
        benchmark.table(name, primary.structure, primary.metric, primary.labelled, metric.is_signed).mean(axis=0)
        for name in (primary.arm, primary.baseline)
    )
    gain = arm - baseline if metric.higher_is_better else baseline - arm
    order = np.argsort(-gain, kind="stable")
    places = {"best for the arm": order[0], "middle": order[len(order) // 2], "worst for the arm": order[-1]}
    found: dict[int, str] = {}
    for words, place in places.items():
        found.setdefault(int(place), words)
    return [(words, cases[i], float(baseline[i]), float(arm[i])) for i, words in found.items()]


def show_cases(benchmark: Benchmark, cohort: Manifest, folder: Path) -> Path | None:
    """Draw the chosen scans with the outlines of the truth and of both arms; returns the path of `cases.png`.

    The outlines are those of the first seed (and draw). None if a job has kept no slices, or there is no comparison.

    Args:
        benchmark: results.
        cohort: the cohort of the test scans.
        folder: folder of the benchmark.

    Raises:
        UserError: a scan cannot be read.
    """
    primary, rows = benchmark.primary, list[CaseRow]()
    if primary is None:
        return None
    by_name = {case.name: case for case in cohort.cases}
    digits = METRICS[primary.metric].digits
    draw = None if primary.labelled is None else benchmark.draws[0]
    for words, name, *scores in chosen_cases(benchmark):
        fold = benchmark.folds.get(name)
        jobs = [Job(arm, benchmark.seeds[0], fold, primary.labelled, draw) for arm in (primary.baseline, primary.arm)]
        planes = [load_planes(job.scores(folder).with_name("planes.npz")).get(name) for job in jobs]
        host, truth = read_case(cohort, by_name[name])
        if truth is None or any(plane is None for plane in planes):
            return None
        z = busiest_slice(truth)
        spacing = np.linalg.norm(host.affine[:3, :3], axis=0).tolist()
        caption = f"{words}\n{scores[0]:.{digits}f} to {scores[1]:.{digits}f}"
        rows.append((caption, spacing, host.array[0, ..., z], [truth[..., z], *(p for p in planes if p is not None)]))
    panels = ("image", "truth", primary.baseline, primary.arm)
    path = folder / "cases.png"
    save_figure(outlined_cases(rows, panels, cohort.schema.foreground), path)
    return path
