"""Faithfulness and fidelity over the number of steps, for each sampler, of a trained checkpoint.

python benchmarks/steps.py CHECKPOINT [key=value of medaug.generate ...] [--judge FILE] [--steps 1 2 4 8 16 32]

One volume for each validation mask, all samplers and steps from the same seeds. A number of steps "loses nothing" if
it, and every larger one, is no worse than the reference in both faithfulness and spectral distance, by paired
comparison over subjects: the worse end of the 95% interval of the mean difference stays within the margin (0.01 of
Dice; 0.1 of the real scans' standard deviation). There are two references: the same sampler at the most steps, and, for
each of the two measures by itself, the best of all samplers at the most steps. Volumes are kept in --work, and the same
command goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, arguments, machine, save_result
from numpy.typing import NDArray
from quality import (
    MEASURES,
    Scorer,
    Scores,
    as_plain,
    difference,
    drawing,
    evaluations,
    load_cohort,
    load_judge,
    sampled,
    sampling,
    write_scores,
)

from medaug.diffusion.samplers import SAMPLERS
from medaug.files import atomic_write, file_sha256
from medaug.pictures.figures import NEUTRAL, PALETTE
from medaug.training.checkpoint import load_model

MARGINS = {"faithfulness": 0.01, "spectral_distance": 0.1}
LABELS = {
    "faithfulness": "faithfulness (Dice of the judge)",
    "spectral_distance": "spectral distance (sd of real scans)",
    "gradient_deviation": "deviation of the gradient (sd of real scans)",
}
Key = tuple[str, int]


def main() -> None:
    """Sample, score, and print and write the curves."""
    parser = arguments(__doc__ or "", "steps")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--judge", type=Path, help="the judge's weights; trained there if absent")
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "images" / "steps.png")
    parser.add_argument("words", nargs="*", help="key=value of medaug.generate")
    options = parser.parse_intermixed_args()
    steps = sorted(options.steps)
    card, model = load_model(options.checkpoint, torch.device("cpu"))
    digest = file_sha256(options.checkpoint)
    cohort = load_cohort(card.experiment, options.work / "cache", card.preprocessing)
    scorer = Scorer(load_judge(options.judge or options.work / "judge.pt", cohort, options.judge_steps), cohort)

    scores: dict[Key, Scores] = {}
    discrepancies: dict[Key, float] = {}
    for n in steps:
        for sampler in options.samplers:
            settings = sampling(card.experiment, [*options.words, f"sampler={sampler}"]) | {"num_inference_steps": n}
            folder = options.work / digest[:12] / f"{sampler}_{n}"
            draw = drawing(model, settings)
            volumes = sampled(folder, settings | {"checkpoint": digest}, cohort.val, draw)
            scores[sampler, n] = scorer(volumes)
            discrepancies[sampler, n] = scorer.discrepancy(volumes)
            means = {measure: round(float(values.mean()), 3) for measure, values in scores[sampler, n].items()}
            print(f"{sampler}, {n} steps: {means}, of the set {discrepancies[sampler, n]:.3f}", flush=True)

    real, most = scorer.real(), steps[-1]
    lasts = [scores[sampler, most] for sampler in options.samplers]
    best = {measure: max((one[measure] for one in lasts), key=worth(measure)) for measure in MARGINS}
    own_least, best_least = {}, {}
    for sampler in options.samplers:
        curve = {n: scores[sampler, n] for n in steps}
        own_least[sampler] = least(curve, curve[most], cohort.subjects)
        best_least[sampler] = least(curve, best, cohort.subjects)
    rows = [
        {
            "sampler": sampler,
            "steps": n,
            "evaluations": evaluations(sampler, n),
            "means": scorer.means(values),
            "spectral_discrepancy": discrepancies[sampler, n],
            "minus_own_most": compared(values, scores[sampler, most], cohort.subjects),
            "minus_best_most": compared(values, best, cohort.subjects),
        }
        for (sampler, n), values in scores.items()
    ]
    print(f"{machine()}; {len(cohort.val)} volumes of {len(set(cohort.subjects))} subjects")
    print("real:", {measure: round(float(values.mean()), 3) for measure, values in real.items()})
    for sampler in options.samplers:
        print(f"{sampler}: loses nothing from {own_least[sampler]} steps on against its own {most}, ", end="")
        print(f"from {best_least[sampler]} against the best at {most}")
    lossless = [(evaluations(sampler, n), sampler, n) for sampler, n in best_least.items() if n is not None]
    if cheapest := min(lossless, default=None):
        print(f"fewest evaluations that lose nothing against the best: {cheapest[1]} at {cheapest[2]} steps")
    plot(scores, real, options.picture)
    figures = {
        "checkpoint": digest,
        "guidance": {k: v for k, v in sampling(card.experiment, options.words).items() if k.startswith("guidance")},
        "margins": MARGINS,
        "real": scorer.means(real),
        "loses_nothing_against_own": own_least,
        "loses_nothing_against_best": best_least,
        "cheapest": cheapest and {"sampler": cheapest[1], "steps": cheapest[2]},
        "rows": rows,
    }
    write_scores(options.result.with_suffix(".csv"), ["sampler", "steps"], {**scores, ("real", 0): real}, cohort)
    save_result(options.result, [0], len(cohort.val), figures)


def worth(measure: str) -> Callable[[NDArray[np.float64]], float]:
    """The mean of a measure's values, signed so that more is better."""
    return lambda values: float(values.mean()) * (1 if MEASURES[measure] else -1)


def compared(scores: Scores, reference: Scores, subjects: Sequence[str]) -> dict[str, dict[str, float]]:
    """Paired differences in the measures that have a margin."""
    return {m: as_plain(difference(scores[m], reference[m], subjects)) for m in MARGINS}


def least(curve: Mapping[int, Scores], reference: Scores, subjects: Sequence[str]) -> int | None:
    """The smallest number of steps such that it and all larger ones lose nothing; None if even the largest does."""
    found = None
    for n in sorted(curve, reverse=True):
        for measure, interval in compared(curve[n], reference, subjects).items():
            worst = -interval["low"] if MEASURES[measure] else interval["high"]
            if worst > MARGINS[measure]:
                return found
        found = n
    return found


def plot(scores: Mapping[Key, Scores], real: Scores, path: Path) -> None:
    """A panel per measure: its mean over evaluations of the network, a line per sampler, real scans dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels: Any = figure.subplots(1, len(MEASURES))
    samplers = list(dict.fromkeys(sampler for sampler, _ in scores))
    for panel, (measure, label) in zip(panels, LABELS.items(), strict=True):
        for sampler, colour in zip(samplers, (*PALETTE[:3], *PALETTE[4:]), strict=False):
            counts = [n for name, n in scores if name == sampler]
            means = [scores[sampler, n][measure].mean() for n in counts]
            panel.plot([evaluations(sampler, n) for n in counts], means, "o-", ms=4, color=colour, label=sampler)
        panel.axhline(real[measure].mean(), color=NEUTRAL, ls="--", lw=1, label="real scans")
        panel.set(xscale="log", xlabel="evaluations of the denoiser", title=label)
        ticks = sorted({n for _, n in scores})
        panel.set_xticks(ticks, [str(n) for n in ticks], minor=False)
        panel.minorticks_off()
        panel.title.set_fontsize(10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    main()
