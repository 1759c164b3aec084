"""Do scans without labels help? A few labelled subjects, with and without the unlabelled scans of all others.

python benchmarks/semi_supervised.py [key=value of medaug.train ...] [--steps 4000] [--seeds 0 1 2]

Without them, each batch is labelled. With them, an unlabelled half of each batch trains the null condition: "instead"
of labelled samples in a batch of the same size, which shows the masks half as often, or "beside" them in a batch twice
as large, which takes twice as long. Everything else is the same: optimisation steps, the labelled subjects (drawn by
the seed), the seed of training, and the volumes' masks, seeds and sampler. The judge is trained on all labels of the
training split and only measures. Volumes are drawn at several guidance scales, since how far guidance leads depends on
how well the null condition is trained, which is what the arms differ in.

What is finished, a training or a set of volumes, is kept in --work, the same command goes on from there, and the result
is written after every seed.
"""

from __future__ import annotations

import itertools
import json
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
from medaug.files import file_sha256
from medaug.training.checkpoint import load_model

WITHOUT, WITH = "without", ("instead", "beside")


def main() -> None:
    """Run job after job; print and write the paired differences."""
    parser = arguments(__doc__ or "", "semi_supervised")
    parser.add_argument("--experiment", default="hippocampus")
    parser.add_argument("--labelled", type=int, default=8, help="training subjects that keep their labels")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
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

    losses: dict[str, float] = {}
    discrepancies: dict[str, float] = {}
    done: dict[tuple[str, int, float], Scores] = {}

    def job(arm: str, seed: int) -> None:
        """Train one model, sample its volumes, and score them."""
        folder = options.work / f"seed_{seed}" / arm
        words = [f"experiment={options.experiment}", f"trainer.max_steps={options.steps}", f"trainer.seed={seed}"]
        words += [f"data.labelled={options.labelled}", f"data.labelled_seed={seed}", *options.words, *arms[arm]]
        seconds = train(words, folder)
        trained = folder / options.experiment / "train"
        losses[f"{arm}, seed {seed}"] = loss = json.loads((trained / "finished.json").read_text())["validation_loss"]
        print(f"seed {seed}, {arm}: trained in {seconds:.0f} s, validation loss {loss:.3f}")
        checkpoint = trained / "last.ckpt"
        digest = file_sha256(checkpoint)
        _, model = load_model(checkpoint, torch.device("cpu"))
        for scale in options.guidance_scales:
            settings_used = settings | {"guidance_scale": scale}
            draw = drawing(model, settings_used)
            volumes = sampled(
                folder / f"guidance_{scale:g}", settings_used | {"checkpoint": digest}, cohort.val, draw, seed
            )
            scores = done[arm, seed, scale] = scorer(volumes)
            discrepancies[f"{arm}, seed {seed}, guidance {scale:g}"] = of_set = scorer.discrepancy(volumes)
            means = {measure: round(float(values.mean()), 3) for measure, values in scores.items()}
            print(f"seed {seed}, {arm}, guidance {scale:g}: {means}, of the set {of_set:.3f}", flush=True)

    print(f"{machine()}; {len(cohort.val)} volumes of {len(set(cohort.subjects))} subjects")
    for number, seed in enumerate(options.seeds, start=1):
        for arm in arms:
            job(arm, seed)
        seeds = options.seeds[:number]
        differences: dict[str, dict[str, dict[str, Any]]] = {}
        for arm, scale, measure in itertools.product(WITH, options.guidance_scales, MEASURES):
            with_, without = (np.array([done[one, s, scale][measure] for s in seeds]) for one in (arm, WITHOUT))
            rows = {f"seed {s}": difference(with_[i], without[i], cohort.subjects) for i, s in enumerate(seeds)}
            rows["all seeds"] = difference(with_, without, cohort.subjects)
            plain = differences.setdefault(f"{arm}, guidance {scale:g}", {}).setdefault(measure, {})
            for name, interval in rows.items():
                found = verdict(interval, MEASURES[measure])
                plain[name] = as_plain(interval) | {"verdict": found}
                bounds = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
                print(f"{measure}, {arm} - without, guidance {scale:g}, {name}: {bounds}: {found}")
        figures = {
            "labelled": options.labelled,
            "steps": options.steps,
            "sampling": settings,
            "real": scorer.means(scorer.real()),
            "means": {
                f"{arm}, seed {seed}, guidance {scale:g}": scorer.means(scores)
                for (arm, seed, scale), scores in done.items()
            },
            "spectral_discrepancy": discrepancies,
            "validation_loss": losses,
            "with_minus_without": differences,
        }
        write_scores(options.result.with_suffix(".csv"), ["arm", "seed", "guidance_scale"], done, cohort)
        save_result(options.result, seeds, len(cohort.val), figures)


if __name__ == "__main__":
    main()
