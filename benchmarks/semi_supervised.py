"""Do scans without labels help? A few labelled subjects, with and without the unlabelled scans of all others.

python benchmarks/semi_supervised.py [key=value of medaug.train ...] [--steps 4000] [--seeds 0 1 2]

Without them, each batch is labelled. With them, an unlabelled half of each batch trains the null condition: "instead"
of labelled samples in a batch of the same size, which shows the masks half as often, or "beside" them in a batch twice
as large, which takes twice as long. Everything else is the same: optimisation steps, the labelled subjects (drawn by
the seed), the seed of training, and the volumes' masks, seeds and sampler. The judge is trained on all labels of the
training split and only measures. A job is one training and its volumes; what is finished is kept in --work, the same
command goes on from there, and the result is written after every seed.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, machine, save_result
from quality import (
    MEASURES,
    Scorer,
    Scores,
    as_plain,
    difference,
    drawing,
    load_cohort,
    load_judge,
    sampled,
    sampling,
    train,
    write_scores,
)

from medaug.config import load_options
from medaug.evaluation.statistics import verdict
from medaug.training.checkpoint import file_sha256, load_model

WITHOUT, WITH = "without", ("instead", "beside")


def main() -> None:
    """Run job after job; print and write the paired differences."""
    parser = arguments(__doc__ or "", "semi_supervised")
    parser.add_argument("--experiment", default="hippocampus")
    parser.add_argument("--labelled", type=int, default=8, help="training subjects that keep their labels")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--judge", type=Path, help="the judge's weights; trained there if absent")
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("words", nargs="*", help="key=value of medaug.train, for all arms")
    options = parser.parse_intermixed_args()
    # Refuses what is misspelt, now.
    batch_size = load_options("train", [f"experiment={options.experiment}", *options.words]).trainer.batch_size
    arms = {
        WITHOUT: ["data.unlabelled=false"],
        "instead": ["trainer.labelled_share=0.5"],
        "beside": ["trainer.labelled_share=0.5", f"trainer.batch_size={2 * batch_size}"],
    }
    cohort = load_cohort(options.experiment, options.work / "cache")
    scorer = Scorer(load_judge(options.judge or options.work / "judge.pt", cohort, options.judge_steps), cohort)
    settings = sampling(options.experiment)

    discrepancies: dict[str, float] = {}

    def job(arm: str, seed: int) -> Scores:
        """Train one model, draw its volumes, and score them."""
        folder = options.work / f"seed_{seed}" / arm
        words = [f"experiment={options.experiment}", f"trainer.max_steps={options.steps}", f"trainer.seed={seed}"]
        words += [f"data.labelled={options.labelled}", f"data.labelled_seed={seed}", *options.words, *arms[arm]]
        seconds = train(words, folder)
        checkpoint = folder / options.experiment / "train" / "last.ckpt"
        digest = file_sha256(checkpoint)
        _, model = load_model(checkpoint, torch.device("cpu"))
        draw = drawing(model, settings)
        volumes = sampled(folder / "volumes", settings | {"checkpoint": digest}, cohort.val, draw, seed)
        scores = scorer(volumes)
        discrepancies[f"{arm}, seed {seed}"] = of_set = scorer.discrepancy(volumes)
        means = {measure: round(float(values.mean()), 3) for measure, values in scores.items()}
        print(f"seed {seed}, {arm}: trained in {seconds:.0f} s; {means}, of the set {of_set:.3f}", flush=True)
        return scores

    print(f"{machine()}; {len(cohort.val)} volumes of {len(set(cohort.subjects))} subjects")
    done: dict[tuple[str, int], Scores] = {}
    for number, seed in enumerate(options.seeds, start=1):
        done |= {(arm, seed): job(arm, seed) for arm in arms}
        seeds = options.seeds[:number]
        differences: dict[str, dict[str, dict[str, Any]]] = {arm: {} for arm in WITH}
        for arm, measure in itertools.product(WITH, MEASURES):
            with_, without = (np.array([done[one, s][measure] for s in seeds]) for one in (arm, WITHOUT))
            rows = {f"seed {s}": difference(with_[i], without[i], cohort.subjects) for i, s in enumerate(seeds)}
            rows["all seeds"] = difference(with_, without, cohort.subjects)
            differences[arm][measure] = {
                name: as_plain(interval) | {"verdict": verdict(interval, MEASURES[measure])}
                for name, interval in rows.items()
            }
            for name, interval in rows.items():
                bounds = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
                told = differences[arm][measure][name]["verdict"]
                print(f"{measure}, {arm} - without, {name}: {bounds}: {told}")
        figures = {
            "labelled": options.labelled,
            "steps": options.steps,
            "sampling": settings,
            "real": scorer.means(scorer.real()),
            "means": {f"{arm}, seed {seed}": scorer.means(scores) for (arm, seed), scores in done.items()},
            "spectral_discrepancy": discrepancies,
            "with_minus_without": differences,
        }
        write_scores(options.result.with_suffix(".csv"), ["arm", "seed"], done, cohort)
        save_result(options.result, seeds, len(cohort.val), figures)


if __name__ == "__main__":
    main()
