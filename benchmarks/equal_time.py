"""Faithfulness and fidelity of medaug and of a plain pixel-space DDPM loop after equal wall time of training.

python benchmarks/equal_time.py [key=value of medaug.train ...] [--seconds 900]

medaug trains through its own stage, for as many steps as fit the time by a measurement beforehand; the plain loop then
trains for exactly the wall time that this took, start-up included, on the same number of threads. Network, batches,
optimiser, learning rate over time, averaging, precision and mask dropout are the same. Both then draw one volume for
each validation mask, from the same seeds, guided alike: medaug by its default sampler, the plain loop in 250 steps. All
that is done is kept in --work, and the same command goes on from there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import HERE, arguments, machine, save_result, times
from plain import PlainDDPM, Training, batches, train_for
from quality import (
    MEASURES,
    Cohort,
    Scorer,
    Volume,
    as_plain,
    difference,
    drawing,
    load_cohort,
    load_judge,
    plain_sampling,
    sampled,
    sampling,
    train,
    untrained,
    write_scores,
)

from medaug.config import load_options
from medaug.files import atomic_write
from medaug.options import Options
from medaug.pictures.figures import comparison_picture, save_figure
from medaug.runs import claim, finish
from medaug.training.checkpoint import load_model


def main() -> None:
    """Train both, sample, score, and print and write the paired differences."""
    parser = arguments(__doc__ or "", "equal_time")
    parser.add_argument("--experiment", default="hippocampus")
    parser.add_argument("--seconds", type=float, default=900, help="wall time of training for each")
    parser.add_argument("--plain-steps", type=int, default=250, help="sampling steps of the plain loop")
    parser.add_argument("--judge", type=Path, help="the judge's weights; trained there if absent")
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "images" / "equal_time.png")
    parser.add_argument("words", nargs="*", help="key=value of medaug.train, for both")
    options = parser.parse_intermixed_args()
    trained = load_options("train", [f"experiment={options.experiment}", *options.words])
    settings = {key: getattr(options, key) for key in ("experiment", "seconds", "plain_steps", "words")}
    claim(options.work, settings | {"threads": torch.get_num_threads()}, overwrite=False)
    cohort = load_cohort(options.experiment, options.work / "cache")

    steps = planned_steps(options.work / "plan.json", options.seconds, trained, cohort)
    words = [f"experiment={options.experiment}", f"trainer.max_steps={steps}", f"trainer.validate_every={steps}"]
    seconds = train([*words, *options.words], options.work / "medaug")
    classes = cohort.manifest.schema.num_classes
    warmup = trained.trainer.warmup_steps / steps
    plain = train_for(seconds, warmup, cohort.train, classes, trained, options.work / "plain" / "last.pt")

    _, model = load_model(options.work / "medaug" / options.experiment / "train" / "last.ckpt", torch.device("cpu"))
    judge = load_judge(options.judge or options.work / "judge.pt", cohort, options.judge_steps)
    ours = sampling(options.experiment)
    theirs = plain_sampling(ours, options.plain_steps)
    averaged = plain.averaged.module.eval()
    assert isinstance(averaged, PlainDDPM)
    volumes = {
        "medaug": sampled(options.work / "volumes" / "medaug", ours, cohort.val, drawing(model, ours)),
        "plain": sampled(options.work / "volumes" / "plain", theirs, cohort.val, drawing(averaged, theirs)),
    }
    scorer = Scorer(judge, cohort)
    scores = {name: scorer(some) for name, some in volumes.items()} | {"real": scorer.real()}
    differences = {m: difference(scores["medaug"][m], scores["plain"][m], cohort.subjects) for m in MEASURES}

    print(machine())
    print(f"{seconds:.0f} s each: medaug {steps} steps, plain {plain.step} steps; {len(cohort.val)} volumes")
    for name, row in scores.items():
        means = scorer.means(row)
        shown = (f"{m} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for m, v in means.items())
        print(f"{name:10}", *shown, sep="  ")
    for name, some in volumes.items():
        print(f"{name:10}  spectral discrepancy of the set {scorer.discrepancy(some):.3f}")
    for measure, interval in differences.items():
        better = "higher" if MEASURES[measure] else "lower"
        bounds = f"[{interval.low:+.3f}, {interval.high:+.3f}]"
        print(f"medaug - plain: {measure} ({better} is better) {interval.mean:+.3f} {bounds}")
    figures = {
        "seconds": {"medaug": seconds, "plain": plain.seconds},
        "steps": {"medaug": steps, "plain": plain.step},
        "sampling": {"medaug": ours, "plain": theirs},
        "means": {name: scorer.means(row) for name, row in scores.items()},
        "spectral_discrepancy": {name: scorer.discrepancy(some) for name, some in volumes.items()},
        "medaug_minus_plain": {measure: as_plain(interval) for measure, interval in differences.items()},
    }
    draw_slices(volumes, cohort, options.picture)
    write_scores(options.result.with_suffix(".csv"), ["images"], {(k,): v for k, v in scores.items()}, cohort)
    save_result(options.result, [trained.trainer.seed], len(cohort.val), figures)
    finish(options.work, {"volumes": len(cohort.val)})


def planned_steps(path: Path, seconds: float, options: Options, cohort: Cohort) -> int:
    """How many of medaug's training steps fit the time, from the median of a few; decided once, kept in `path`."""
    if not path.exists():
        module = untrained(options, cohort)
        training = Training(module.model, lambda batch: module.model.loss(batch, module.dropout), options.trainer)
        stream = batches(cohort.train, options.trainer)
        step = statistics.median(times(lambda: training(next(stream)), 20))
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"steps": max(1, round(seconds / step)), "seconds_per_step": step}))
    return int(json.loads(path.read_text())["steps"])


def draw_slices(volumes: Mapping[str, Sequence[Volume]], cohort: Cohort, path: Path) -> None:
    """The first masks, the volumes that each model generated for them, and the real scans."""
    rows_of = zip(cohort.val[:4], *volumes.values(), strict=False)
    rows = [
        (case.case.name, np.array(case.label), *(v[0] for v in made), np.array(case.image[0]))
        for case, *made in rows_of
    ]
    classes = cohort.manifest.schema.foreground
    save_figure(comparison_picture(rows, "", classes, window=(-1.0, 1.0), panels=("mask", *volumes, "real")), path)


if __name__ == "__main__":
    main()
