"""Stage: measure, on subjects that no model saw, whether the synthetic pairs help.

python -m medaug.benchmark experiment=hippocampus [seeds=[0,1,2]] [steps=600]
"""

from __future__ import annotations

import logging

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.runs import claim, command, continues, finish, refuse_edited, stage_folder, trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Train every arm's segmenters, score them on the test split, compare, and write the report."""
    from rich.console import Console

    from medaug.comparison.arms import check_arms
    from medaug.comparison.benchmark import all_jobs, run_benchmark
    from medaug.comparison.inputs import read_inputs
    from medaug.comparison.labels import TrainingScans, label_counts
    from medaug.comparison.plan import plan_benchmark
    from medaug.comparison.results import Benchmark
    from medaug.comparison.setting import Setting
    from medaug.reporting.console import print_plan, print_table, print_verdicts
    from medaug.reporting.report import write_report

    check_arms(options.arms, options.segmenter.batch_size)
    folder, audit, train, synthetic = (
        stage_folder(options, name) for name in ("benchmark", "audit", "train", "generate")
    )
    inputs = read_inputs(trained_checkpoint(options), train, synthetic, command("generate", options))
    scans = TrainingScans.find(inputs, label_counts(options.benchmark))
    identity = part(options, "benchmark", "arms", "segmenter", "scoring") | inputs.identity | scans.identity
    growable = ("arms.names", "benchmark.labelled", "benchmark.draws")  # each job has its own result
    if options.benchmark.plan:
        setting = Setting.prepare(inputs, scans, options, all_jobs(options))
        started = folder if continues(folder, identity, growable) else None
        print_plan(plan_benchmark(setting, all_jobs(options), started), Console())
        return
    work = claim(folder, identity, options.overwrite, growable, recorded=("cohort",))
    if work:
        result = run_benchmark(inputs, scans, options, folder)
        files = [*result.save(folder), *(job.scores(folder) for job in all_jobs(options))]
    else:
        refuse_edited(folder)
        result = Benchmark.load(folder)
    refuse_edited(audit)
    report = folder / "report.html"
    write_report(result, folder.parent, report)  # also if finished: the audit may have been run in the meantime
    if work:
        finish(folder, {"report": report.name}, files)
    console = Console()
    print_table(result, console)
    print_verdicts(result, console)
    log.info("the report is %s", report.resolve())


if __name__ == "__main__":
    launch("benchmark", main)
