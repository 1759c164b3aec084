"""Stage: measure, on subjects that no model saw, whether the synthetic pairs help.

python -m medaug.benchmark experiment=hippocampus [seeds=[0,1,2]] [steps=600]
"""

from __future__ import annotations

import logging
from dataclasses import replace

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.paths import stage_folder
from medaug.runs import (
    KEEP_SETS,
    claim,
    command,
    continues,
    finish,
    how_made,
    new_keys,
    refuse_edited,
    trained_checkpoint,
)

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Train every arm's segmenters, score them, compare, and write the report; or only print the plan."""
    from rich.console import Console

    from medaug.comparison.arms import check_arms, pairs_to_compare
    from medaug.comparison.benchmark import all_jobs, plan_benchmark, run_benchmark, save_results
    from medaug.comparison.breakdown import break_down
    from medaug.comparison.inputs import benchmark_inputs
    from medaug.comparison.label_curve import label_equivalents
    from medaug.comparison.labels import TrainingScans, label_counts
    from medaug.comparison.looks import count_look
    from medaug.comparison.plan import seconds_of
    from medaug.comparison.primary import declare, primary_of
    from medaug.comparison.results import Benchmark
    from medaug.comparison.workers import Work, run_side_by_side
    from medaug.reporting.console import print_plan, print_table, print_verdicts
    from medaug.reporting.report import write_report

    budget = seconds_of(options.benchmark.budget)
    check_arms(options.arms, options.segmenter.batch_size, options.pseudo.share)
    own = "tuning" if options.benchmark.evaluate == "val" else "benchmark"
    folder, audit = (stage_folder(options, name) for name in (own, "audit"))
    checkpoint = None if options.benchmark.cohort is not None else trained_checkpoint(options)
    inputs = benchmark_inputs(options, checkpoint, folder.parent, command("generate", options))
    primary = primary_of(options.benchmark, options.arms, list(inputs.cohort.schema.structures()))
    scans = TrainingScans.find(inputs, label_counts(options.benchmark))
    identity = part(options, "benchmark", "arms", "pseudo", "segmenter", "scoring") | inputs.identity | scans.identity
    # A finished job does not depend on these keys: new arms, draws, pairs or declarations do not change its result.
    growable = ("arms.names", "benchmark.labelled", "benchmark.draws", "declared", *new_keys(folder, ("pairs",)))
    if options.benchmark.plan:
        plans = plan_benchmark(inputs, scans, options, folder if continues(folder, identity, growable) else None)
        print_plan(plans, Console(), options.benchmark.workers, budget, (options.benchmark.primary or [])[:2])
        return
    work = claim(folder, identity | how_made(folder), options.overwrite, growable, ("cohort",), KEEP_SETS)
    jobs = all_jobs(options)
    if not work:
        refuse_edited(folder)
    inputs.save_splits(folder)
    declared = declare(folder, primary, sum(job.is_done(folder) for job in jobs))
    if work:
        counted = own == "benchmark" and not inputs.folds
        looks = count_look(folder.parent / "looks.json", identity) if counted else None
        run_side_by_side(Work(options, checkpoint, folder, command("generate", options)), jobs)
        result = replace(run_benchmark(inputs, scans, options, folder), looks=looks)
    else:
        result = Benchmark.load(folder)
    if declared != result.declared:  # the question is asked of the scores, which do not depend on it
        result, work = replace(result, declared=declared).compare(pairs_to_compare(options.arms.names)), True
    groups = break_down(result)
    files = save_results(result, groups, inputs, folder) if work else []
    refuse_edited(audit)
    report, equivalents = folder / "report.html", label_equivalents(result)
    # The report is written even if the benchmark was finished before: an audit may have been added since.
    write_report(result, equivalents, folder.parent, report, groups)
    if work:
        finish(folder, {"report": report.name}, [*files, *(path for job in jobs for path in job.score_files(folder))])
    console = Console()
    print_table(result, console)
    print_verdicts(result, equivalents, console)
    log.info("the report, with all metrics and comparisons, is %s", report.resolve())


if __name__ == "__main__":
    launch("benchmark", main)
