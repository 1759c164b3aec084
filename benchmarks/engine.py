"""Time medaug's training steps and sampling in each codec against a plain pixel-space DDPM loop, in one run.

python benchmarks/engine.py [--codecs identity haar kl] [--rounds 5]

All have the same channels (about as many parameters), batches, optimiser, averaging and precision, and are guided. A
round times each one once, in turn, so that a ratio compares neighbours in time; ratios are per round. Sampling takes
medaug's default sampler and steps, and 250 steps of the plain loop. Networks, and the autoencoder of kl, are untrained:
that costs the same. Rounds that are finished are kept, and the same command goes on from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from common import arguments, machine, save_result, spread
from plain import PlainDDPM, Training, batches
from quality import Cohort, drawing, evaluations, load_cohort, plain_sampling, sampling, untrained

from medaug.config import load_options
from medaug.files import atomic_write
from medaug.runs import claim, finish
from medaug.training.model import DiffusionModel

PLAIN = "plain"
UNITS = {"training": "training samples/s", "sampling": "sampled volumes/s", "evaluation": "guided evaluations/s"}
TARGETS = {"training": 8, "sampling": 100}
"""Of haar, times plain."""


def main() -> None:
    """Print and write the table of throughputs and ratios."""
    parser = arguments(__doc__ or "", "engine")
    parser.add_argument("--experiment", default="hippocampus")
    parser.add_argument("--codecs", nargs="+", default=["identity", "haar", "kl"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-steps", type=int, default=4, help="timed training steps a round")
    parser.add_argument("--plain-steps", type=int, default=250, help="sampling steps of the plain loop")
    options = parser.parse_intermixed_args()
    names = [PLAIN, *options.codecs]
    settings = {"experiment": options.experiment, "names": names, "train_steps": options.train_steps}
    settings |= {"plain_steps": options.plain_steps, "threads": torch.get_num_threads()}
    record = options.work / "rounds.json"
    claim(options.work, settings, overwrite=False)
    rounds: list[dict[str, Any]] = json.loads(record.read_text()) if record.exists() else []
    cohort = load_cohort(options.experiment, options.work / "cache")
    contenders = {name: Contender(name, cohort, options.experiment, options.plain_steps) for name in names}
    for contender in contenders.values():  # what is only paid once
        contender.train(1)
    while len(rounds) < options.rounds:
        rounds.append({name: contender.timed(options.train_steps) for name, contender in contenders.items()})
        with atomic_write(record) as temporary:
            temporary.write_text(json.dumps(rounds))
        print(f"round {len(rounds)} of {options.rounds}: {rounds[-1]}", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for name, contender in contenders.items():
        rows[name] = {"parameters": contender.parameters, "sampler": contender.sampler}
        for what in UNITS:
            own, plain = ([one[who][what] for one in rounds] for who in (name, PLAIN))
            ratios = [x / y for x, y in zip(own, plain, strict=True)]
            rows[name][what] = {"per_second": spread(own), "times_plain": spread(ratios)}
    report(rows)
    save_result(options.result, [0], len(rounds), {"batch_size": contenders[PLAIN].batch_size, "rows": rows})
    finish(options.work, {"rounds": len(rounds)})


class Contender:
    """A model with its training loop and its sampling, as the experiment's defaults are."""

    def __init__(self, name: str, cohort: Cohort, experiment: str, plain_steps: int) -> None:
        words = [f"experiment={experiment}"] + ([f"codec={name}"] if name != PLAIN else [])
        options = load_options("train", words)
        self.batch_size = options.trainer.batch_size
        settings = sampling(experiment)
        self.model: PlainDDPM | DiffusionModel
        if name == PLAIN:
            modalities, classes = len(cohort.manifest.modalities), cohort.manifest.schema.num_classes
            self.model = plain = PlainDDPM(modalities, classes, options.network)
            settings = plain_sampling(settings, plain_steps)
            self.training = Training(
                plain, lambda batch: plain.loss(batch, options.trainer.condition_dropout), options.trainer
            )
        else:
            module = untrained(options, cohort)
            self.model = module.model
            self.training = Training(
                module.model, lambda batch: module.model.loss(batch, module.dropout), options.trainer
            )
        sampler, steps = settings.get("sampler", "ddpm"), settings["num_inference_steps"]
        self.sampler = f"{sampler}, {steps} steps, guidance {settings['guidance_scale']:g}"
        self.evaluations = evaluations(sampler, steps)
        self.parameters = sum(p.numel() for p in self.model.network.parameters())
        self.batches: Iterator[dict[str, torch.Tensor]] = batches(cohort.train, options.trainer)
        self.label = torch.from_numpy(np.array(cohort.val[0].label)).long()[None]
        self.draw = drawing(self.model, settings)

    def train(self, steps: int) -> None:
        """Do some optimisation steps."""
        for _ in range(steps):
            self.training(next(self.batches))

    def timed(self, steps: int) -> dict[str, float]:
        """Training samples, sampled volumes and guided evaluations of the network per second, now."""
        self.train(1)  # not counted: another model ran before
        start = time.perf_counter()
        self.train(steps)
        trained = time.perf_counter()
        self.model.eval()
        self.draw(self.label, [0])
        self.model.train()
        sampling = time.perf_counter() - trained
        return {
            "training": steps * self.batch_size / (trained - start),
            "sampling": 1 / sampling,
            "evaluation": self.evaluations / sampling,
        }


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table, and whether the targets are met."""
    print(machine())
    print(f"{'median (min to max)':24}{'per second':>32}{'times plain':>28}")
    for name, row in rows.items():
        print(f"{name}: {row['parameters'] / 1e6:.2f} M parameters; {row['sampler']}")
        for what, unit in UNITS.items():
            per_second, ratio = (
                f"{row[what][kind]['median']:.4g} ({row[what][kind]['min']:.4g} to {row[what][kind]['max']:.4g})"
                for kind in ("per_second", "times_plain")
            )
            print(f"  {unit:22}{per_second:>32}{ratio:>28}")
    for what, target in TARGETS.items() if "haar" in rows else ():
        reached = rows["haar"][what]["times_plain"]["median"]
        verdict = "met" if reached >= target else "missed"
        print(f"target: haar at least {target} times plain in {UNITS[what]}; {verdict} ({reached:.1f})")


if __name__ == "__main__":
    main()
