"""Stage: measure on untouched subjects whether the synthetic pairs help.

python -m medaug.benchmark experiment=hippocampus [seeds=[0,1,2]] [steps=600]
"""

from __future__ import annotations

import dataclasses
import logging

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.runs import claim, command, finish, refuse_edited, stage_folder, trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Train every arm's segmenters, score them on the test split, compare, and write the report."""
    from rich.console import Console

    from medaug.comparison.arms import check_arms, diet, pairs_to_compare
    from medaug.comparison.guard import guarded_cohort
    from medaug.comparison.jobs import Job, compare, gather, run_job
    from medaug.errors import UserError
    from medaug.files import file_sha256, write_json
    from medaug.reporting.report import arm_table, print_table, print_verdicts, write_report
    from medaug.synthesis.pairs import Pairs
    from medaug.training.checkpoint import read_checkpoint

    check_arms(options.arms, options.segmenter.batch_size)
    if len(set(options.benchmark.seeds)) < len(options.benchmark.seeds):
        raise UserError(f"seeds={options.benchmark.seeds}: a seed given twice is the same segmenter; name each once")
    folder = stage_folder(options, "benchmark")
    checkpoint = trained_checkpoint(options)
    digest = file_sha256(checkpoint)
    pairs = Pairs.load(stage_folder(options, "generate"), command("generate", options))
    card, _ = read_checkpoint(checkpoint)
    train = stage_folder(options, "train")
    cohort, content = guarded_cohort(train, pairs, card, digest)
    identity = part(options, "benchmark", "arms", "segmenter")
    identity |= {"checkpoint": digest, "pairs": pairs.digest, "cohort": content}
    report = folder / "report.html"
    work = claim(folder, identity, options.overwrite, recorded=("cohort",))
    if work:
        import numpy as np

        from medaug.data.cases import load_cases
        from medaug.data.contents import case_contents, cohort_digest, refuse_copies
        from medaug.evaluation.baseline import trivial_dice

        cache = folder.parent / "cache"
        labelled = [case for case in cohort.split("train") if case.label is not None]
        scored = [case for case in cohort.split("test") if case.label is not None]
        if not scored:
            raise UserError(f"{cohort.root}: no labelled test subjects; raise data.test_fraction and train again")
        if left := len(cohort.split("test")) - len(scored):
            log.warning("%d test scans have no label and are not scored", left)
        real = load_cases(cohort, labelled, card.preprocessing, cache)
        test = load_cases(cohort, scored, card.preprocessing, cache)
        synthetic = load_cases(pairs.manifest, pairs.manifest.cases, card.preprocessing, cache)
        refuse_copies({"train": real, "test": test, "synthetic": synthetic})
        jobs = [Job(arm, seed) for seed in options.benchmark.seeds for arm in options.arms.names]
        for job in jobs:
            food = diet(job.arm, real, synthetic, options.arms.synthetic_share)
            steps = options.benchmark.steps
            run_job(job, food, steps, options.segmenter, test, cohort, card.preprocessing, folder)
        # A job scores against the files themselves.
        if cohort_digest(cohort, case_contents(cohort, cohort.cases, cache)) != content:
            raise UserError(f"{cohort.root}: scans changed while the benchmark ran; give overwrite=true to begin again")

        subjects = {case.case.name: case.case.subject for case in test}
        seeds, classes = list(options.benchmark.seeds), list(cohort.schema.structures())
        rows = gather(jobs, folder)
        compared = pairs_to_compare(options.arms.names)
        seed = options.benchmark.bootstrap_seed
        floor = trivial_dice(
            [np.asarray(case.label) for case in real], [case.case.subject for case in real], cohort.schema
        )
        compare(rows, compared, seeds, subjects, classes, seed, floor, folder / "comparison.csv")
        summary = {
            "experiment": options.experiment,
            "phantom": cohort.phantom,
            "smoke": "smoke" in (options.preset, card.preset),
            "arms": list(options.arms.names),
            "seeds": seeds,
            "steps": options.benchmark.steps,
            "num_training_cases": len(real),
            "num_test_subjects": len(set(subjects.values())),
            "num_test_cases": len(test),
            "subjects": subjects,
            "classes": classes,
            "floor": floor,
            "num_synthetic": len(synthetic),
            "config": {name: dataclasses.asdict(getattr(options, name)) for name in ("benchmark", "arms", "segmenter")}
            | {"training": card.options},
        }
        write_json(folder / "summary.json", summary)
    else:
        refuse_edited(folder)
    refuse_edited(stage_folder(options, "audit"))
    # Always: the audit may have been run, or run again, since.
    write_report(folder, report)
    if work:
        tables = [folder / name for name in ("scores.csv", "comparison.csv", "summary.json")]
        finish(folder, {"report": report.name}, [*tables, *(job.scores(folder) for job in jobs)])
    console = Console()
    print_table(arm_table(folder), console)
    print_verdicts(folder, console)
    log.info("the report is %s", report.resolve())


if __name__ == "__main__":
    launch("benchmark", main)
