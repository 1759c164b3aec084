"""Helpers of the benchmarks of image quality: the cohort, the judge, sampled volumes and their scores.

Volumes are scored on the validation split, one for each of its masks; test subjects are never looked at. Every volume
is a file that is written when it is made, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from plain import PlainDDPM
from torch import Tensor

from medaug.cohort.manifest import Manifest
from medaug.config import load_options, part
from medaug.csv_files import write_csv
from medaug.data.batches import as_tensors, collate
from medaug.data.cases import ModelCase, load_cases, read_grids
from medaug.data.cohorts import find_cohort
from medaug.data.preprocessing import Preprocessing, fit_preprocessing
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.noise import named_seed
from medaug.diffusion.samplers import SAMPLERS, Sampling
from medaug.evaluation.faithfulness import agreement
from medaug.evaluation.fidelity import spectral_discrepancy, texture
from medaug.evaluation.statistics import Interval, bootstrap_mean, paired_comparison
from medaug.files import atomic_write
from medaug.options import Options, SegmenterOptions
from medaug.runs import claim, finish
from medaug.segmentation.backends import trained_judge
from medaug.segmentation.protocol import Judge, Problem, TrainingSet
from medaug.train import MODEL_NODES
from medaug.training.checkpoint import Card
from medaug.training.model import DiffusionModel
from medaug.training.module import DiffusionModule

MEASURES = {"faithfulness": True, "spectral_distance": False, "gradient_deviation": False}
"""Whether higher is better."""

Scores = dict[str, NDArray[np.float64]]
Volume = NDArray[np.float32]
Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""Label (B, X, Y, Z) and seeds to images (B, M, X, Y, Z) in [-1, 1]."""


@dataclass(frozen=True)
class Cohort:
    """The labelled scans of the training and the validation split in model space."""

    manifest: Manifest
    preprocessing: Preprocessing
    train: list[ModelCase]
    val: list[ModelCase]

    @property
    def subjects(self) -> list[str]:
        """The subject of each validation scan."""
        return [case.case.subject for case in self.val]


def load_cohort(experiment: str, cache: Path, preprocessing: Preprocessing | None = None) -> Cohort:
    """An experiment's cohort; `preprocessing` is that of a checkpoint, by default fitted as `medaug.train` does."""
    options = load_options("train", [f"experiment={experiment}"])
    manifest = find_cohort(options.data, cache)
    if preprocessing is None:
        grids = read_grids(manifest, manifest.split("train"), options.data.crop)
        preprocessing = fit_preprocessing(grids, options.data, multiple=2 ** len(options.network.channels))
    train, val = (
        load_cases(manifest, [c for c in manifest.split(split) if c.label is not None], preprocessing, cache)
        for split in ("train", "val")
    )
    return Cohort(manifest, preprocessing, train, val)


def untrained(options: Options, cohort: Cohort) -> DiffusionModule:
    """medaug's model and its training as at the start of `medaug.train`; the codec kl has random weights."""
    card = Card(
        experiment=options.experiment,
        options=part(options, *MODEL_NODES),
        preprocessing=cohort.preprocessing,
        schema=cohort.manifest.schema,
        modalities=cohort.manifest.modalities,
        subjects={},
        phantom=cohort.manifest.phantom,
    )
    module = DiffusionModule(card, options.trainer)
    model = module.model
    model.codec.fit(model.target(collate([as_tensors(case)]))[0] for case in cohort.train)
    return module


def load_judge(path: Path, cohort: Cohort, steps: int, seed: int = 0) -> Judge:
    """The segmenter in `path` (such as the audit's judge.pt), trained on all labelled training scans if absent."""
    problem = Problem(cohort.manifest.modalities, cohort.manifest.schema, cohort.preprocessing)
    options, training_set = SegmenterOptions(), TrainingSet(cohort.train)
    return trained_judge("unet", problem, options, training_set, steps, seed, "judge", path)


def sampled(
    folder: Path, identity: Mapping[str, Any], cases: Sequence[ModelCase], draw: Draw, seed: int = 0
) -> list[Volume]:
    """One volume (M, X, Y, Z) per mask of `cases`, in [-1, 1]; volumes that exist as files are not made again.

    The seed of a volume is a function of `seed` and of its place in `cases`, the same whatever makes it.

    Args:
        folder: one file per volume.
        identity: what made them; a folder of another one is refused.
        cases: their masks are used.
        draw: makes the volumes.
        seed: root of the volumes' seeds.
    """
    if claim(folder, {**identity, "seed": seed, "masks": [case.case.name for case in cases]}, overwrite=False):
        for place, case in enumerate(cases):
            path = folder / f"{case.case.name}.npy"
            if not path.exists():
                label = torch.from_numpy(np.array(case.label)).long()[None]
                volume = draw(label, [named_seed(seed, "volume", place)])[0].cpu().numpy()
                with atomic_write(path) as temporary:
                    np.save(temporary, volume)
        finish(folder, {"volumes": len(cases)})
    return [np.load(folder / f"{case.case.name}.npy") for case in cases]


class Scorer:
    """Every measure of a list of volumes, one for each validation mask; each measure is an array (n,).

    faithfulness        the judge's mean foreground Dice against the mask
    spectral_distance   from the real validation scans' octave spectra, in standard deviations of theirs
    gradient_deviation  of the mean absolute gradient from the real validation scans' mean, in their standard deviations
    """

    def __init__(self, judge: Judge, cohort: Cohort) -> None:
        self.judge = judge
        self.cohort = cohort
        rows = np.array([_textures(case.image) for case in cohort.val])
        self.mean, self.std = rows.mean(0), rows.std(0, ddof=1)

    def __call__(self, volumes: Sequence[Volume]) -> Scores:
        """Score volumes (M, X, Y, Z), in the order of the validation scans."""
        masks = (np.array(case.label) for case in self.cohort.val)
        dice = agreement((self.judge.segment(volume) for volume in volumes), masks, self.cohort.manifest.schema)
        rows = (np.array([_textures(volume) for volume in volumes]) - self.mean) / self.std
        return {
            "faithfulness": dice,
            "spectral_distance": np.sqrt(np.square(rows[..., 1:]).mean(-1)).mean(1),
            "gradient_deviation": np.abs(rows[..., 0]).mean(1),
        }

    def real(self) -> Scores:
        """Score the real validation scans in the same way."""
        return self([np.array(case.image) for case in self.cohort.val])

    def discrepancy(self, volumes: Sequence[Volume]) -> float:
        """`spectral_discrepancy` of the set of volumes, which is also large if they vary too little."""
        rows = np.array([_textures(volume) for volume in volumes])[..., 1:]
        means, stds = self.mean[:, 1:], self.std[:, 1:]
        return float(np.mean([spectral_discrepancy(rows[:, m], means[m], stds[m]) for m in range(len(means))]))

    def means(self, scores: Scores) -> dict[str, dict[str, float]]:
        """Mean and interval over subjects of every measure."""
        return {name: as_plain(bootstrap_mean(values, self.cohort.subjects, seed=0)) for name, values in scores.items()}


def _textures(volume: Volume) -> NDArray[np.float64]:
    """`texture` of every modality, (M, 1 + bands)."""
    return np.array([texture(modality) for modality in volume])


def difference(a: NDArray[np.float64], b: NDArray[np.float64], subjects: Sequence[str]) -> Interval:
    """Mean of a - b, paired by volume (n,) or by seed and volume (num_seeds, n), with its interval over subjects."""
    return paired_comparison(np.atleast_2d(a), np.atleast_2d(b), subjects, seed=0)


def as_plain(interval: Interval) -> dict[str, float]:
    """Mean and bounds, for a file of results."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def sampling(experiment: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The sampling options, by key, that `medaug.generate` reads from these words of its command line."""
    options = load_options("generate", [f"experiment={experiment}", *words])
    generate, sampler = options.generate, options.sampler
    return {
        "guidance_scale": generate.guidance_scale,
        "guidance_interval": generate.guidance_interval,
        "guidance_rescale": generate.guidance_rescale,
        "sampler": sampler.name,
        "num_inference_steps": sampler.num_inference_steps,
        "eta": sampler.eta,
        "spacing": sampler.spacing,
    }


def plain_sampling(settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The arguments of `PlainDDPM.sample`, with the same guidance as these settings of `sampling`."""
    guidance = {key: settings[key] for key in ("guidance_scale", "guidance_rescale")}
    return guidance | {"num_inference_steps": steps}


def evaluations(sampler: str, steps: int) -> int:
    """Number of evaluations of the denoiser by a sampler; with guidance, each is a forward pass of two branches."""
    return SAMPLERS[sampler].evaluations(steps)


def drawing(model: DiffusionModel | PlainDDPM, settings: Mapping[str, Any]) -> Draw:
    """The model's `sample` with these settings."""
    if isinstance(model, PlainDDPM):
        return lambda label, seeds: model.sample(label, seeds, **settings)
    interval = settings["guidance_interval"]
    sampling = Sampling(
        settings["sampler"],
        settings["num_inference_steps"],
        settings["spacing"],
        settings["eta"],
        overlap=settings.get("overlap"),
    )
    guidance = Guidance(
        settings["guidance_scale"], interval and (interval[0], interval[1]), settings["guidance_rescale"]
    )
    return lambda label, seeds: model.sample(label, seeds, sampling, guidance)


def train(words: Sequence[str], folder: Path) -> float:
    """Run or resume `medaug.train`, with runs in `folder`; returns its wall time in seconds.

    Samples are not scored on the way: it takes time, and nothing is chosen by the masks that are scored in the end.
    The seconds are those of all calls until it was finished, start-up included; they are kept in `folder`/clock.json.
    """
    clock = folder / "clock.json"
    before = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    began = time.perf_counter()
    command = [sys.executable, "-m", "medaug.train", f"runs={folder}", "trainer.score_every=0", *words]
    done = any(folder.glob("*/train/finished.json"))
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if not done:
                with atomic_write(clock) as temporary:
                    temporary.write_text(json.dumps({"seconds": before + time.perf_counter() - began}))
    if process.returncode:
        raise SystemExit(process.returncode)
    return float(json.loads(clock.read_text())["seconds"])


def write_scores(path: Path, columns: Sequence[str], arms: Mapping[tuple[Any, ...], Scores], cohort: Cohort) -> None:
    """A CSV with a row per volume: `columns` (the keys of `arms`), case, subject, measures."""
    rows = [
        (*key, case.case.name, case.case.subject, *(f"{values[place]:.5f}" for values in scores.values()))
        for key, scores in arms.items()
        for place, case in enumerate(cohort.val)
    ]
    write_csv(path, (*columns, "case", "subject", *MEASURES), rows)
