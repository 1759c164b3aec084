"""Stage: measure, on subjects that no model saw, whether the synthetic pairs help.

python -m medaug.benchmark experiment=hippocampus [seeds=[0,1,2]] [steps=600]
"""

from __future__ import annotations

import logging
from dataclasses import replace

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.runs import claim, command, continues, finish, new_keys, refuse_edited, stage_folder, trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Train every arm's segmenters, score them on the test split, compare, and write the report."""
    from rich.console import Console

    from medaug.comparison.arms import check_arms, pairs_to_compare
    from medaug.comparison.benchmark import all_jobs, prepare_folds, run_benchmark
    from medaug.comparison.inputs import benchmark_inputs
    from medaug.comparison.label_curve import label_equivalents
    from medaug.comparison.labels import TrainingScans, label_counts
    from medaug.comparison.looks import count_look
    from medaug.comparison.plan import plan_benchmark
    from medaug.comparison.primary import declare, primary_of
    from medaug.comparison.results import Benchmark
    from medaug.reporting.console import print_plan, print_table, print_verdicts
    from medaug.reporting.report import write_report

    check_arms(options.arms, options.segmenter.batch_size)
    own = "tuning" if options.benchmark.evaluate == "val" else "benchmark"
    folder, audit = (stage_folder(options, name) for name in (own, "audit"))
    checkpoint = None if options.benchmark.cohort is not None else trained_checkpoint(options)
    inputs = benchmark_inputs(options, checkpoint, folder.parent, command("generate", options))
    primary = primary_of(options.benchmark, options.arms, list(inputs.cohort.schema.structures()))
    scans = TrainingScans.find(inputs, label_counts(options.benchmark))
    identity = part(options, "benchmark", "arms", "pseudo", "segmenter", "scoring") | inputs.identity | scans.identity
    # Each job has its own result; none depends on pairs before they exist, or on what was declared about them.
    growable = ("arms.names", "benchmark.labelled", "benchmark.draws", "declared", *new_keys(folder, ("pairs",)))
    if options.benchmark.plan:
        started = folder if continues(folder, identity, growable) else None
        prepared = prepare_folds(inputs, scans, options)
        print_plan(plan_benchmark(prepared, all_jobs(options), started), Console())
        return
    work = claim(folder, identity, options.overwrite, growable, recorded=("cohort",))
    jobs = all_jobs(options)
    if not work:
        refuse_edited(folder)
    if inputs.checkpoint is None:
        inputs.cohort.save(folder / "manifest.json")
    for fold, one in inputs.folds.items():
        one.cohort.save(folder / "folds" / f"fold_{fold}.json")
    declared = declare(folder, primary, sum(job.is_done(folder) for job in jobs))
    if work:
        counted = own == "benchmark" and not inputs.folds
        looks = count_look(folder.parent / "looks.json", identity) if counted else None
        result = replace(run_benchmark(inputs, scans, options, folder), looks=looks)
    else:
        result = Benchmark.load(folder)
    if declared != result.declared:  # the question is asked of the scores, which do not depend on it
        result, work = replace(result, declared=declared).compare(pairs_to_compare(options.arms.names)), True
    files = result.save(folder) if work else []
    refuse_edited(audit)
    report, equivalents = folder / "report.html", label_equivalents(result)
    write_report(
        result, equivalents, folder.parent, report
    )  # also if finished: the audit may have been run in the meantime
    if work:
        finish(folder, {"report": report.name}, [*files, *(job.scores(folder) for job in jobs)])
    console = Console()
    print_table(result, console)
    print_verdicts(result, equivalents, console)
    log.info("the report, with all metrics and comparisons, is %s", report.resolve())


if __name__ == "__main__":
    launch("benchmark", main)
