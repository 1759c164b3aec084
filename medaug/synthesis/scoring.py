"""Scores samples while a model trains: do they match their masks, do they look real, are they new?

Samples are made from training masks and compared with training and validation scans; test subjects are never used. A
checkpoint chosen by these numbers depends on the validation subjects, and its card says that it saw them.

The samples are `trainer.score_num` images for masks of labelled training scans, as `generate` makes them according to
`masks`. The scores are means over the samples:

- `dice`: Dice between the mask and what a selecting segmenter finds in the sample; `faithfulness`: `dice` divided by
  the segmenter's Dice on real validation scans. The segmenter is trained on the labelled training scans, saved as
  `selector.pt`, and used for nothing else: audit and benchmark use other segmenters.
- `spectral_discrepancy` d from the training scans, mean over modalities; `fidelity` is 1 / (1 + d), so 1/2 if
  samples are one standard deviation of real scans away (`medaug.evaluation.fidelity`).
- `gradient`: mean absolute gradient, divided by that of validation scans.
- `kernel_distance` to the validation scans, in the selecting segmenter's features, which are in units of standard
  deviations of the training scans.
- `similarity` to the nearest training scan; `near_copies`: share of samples above the threshold set by validation
  scans; `near_copies_p`: the probability of so many among new scans (`medaug.evaluation.memorisation`).
- `score`, 0..1: the harmonic mean of faithfulness (at most 1) and fidelity, which the lower of the two dominates,
  times the share of samples that are not near copies, relative to new scans (at most 1). Copies count as worthless,
  however real they look.

If there is no selecting segmenter (too few labelled scans, or it fails on real scans), its scores are left out, and
fidelity replaces the harmonic mean.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import BACKGROUND
from medaug.diffusion.noise import named_seed
from medaug.diffusion.process import Process, build_process
from medaug.diffusion.samplers import safe_spacing
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.faithfulness import agreement
from medaug.evaluation.fidelity import LEAST_SIDE, kernel_distance, log_spectrum, spectral_discrepancy
from medaug.evaluation.memorisation import (
    TrainingNeighbours,
    expected_near_copies,
    near_copies_p,
    near_copy_threshold,
)
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.evaluation.texture import CROP, central_box, mean_absolute_gradient
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions, SegmenterOptions, TrainerOptions
from medaug.processes import wait_for_first
from medaug.segmentation.backends import trained_judge
from medaug.segmentation.protocol import Judge, Problem, TrainingSet
from medaug.synthesis.generation import sample_images
from medaug.synthesis.masks import Label, TrainingMasks
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.sources import load_masks
from medaug.training.checkpoint import Card
from medaug.training.data import TrainingData
from medaug.training.model import DiffusionModel
from medaug.training.sampling import check_sampling
from medaug.training.scoring import Score

log = logging.getLogger(__name__)

FEWEST_LABELLED = 4
"""Minimum number of labelled training scans to train the selecting segmenter."""

LEAST_DICE = 0.3
"""Minimum Dice of the selecting segmenter on real validation scans; a worse one cannot judge samples."""

Image = NDArray[np.float32]
"""(M, X, Y, Z) in [-1, 1]."""


def check_scoring(process: Process, trainer: TrainerOptions) -> None:
    """Refuse a process that the sampler of the scoring cannot sample, which would fail long after training began.

    Args:
        process: process of the model.
        trainer: its `score_inference_steps` is the number of sampler steps.

    Raises:
        UserError: names the key and the remedy.
    """
    try:
        check_sampling(process, _sampler(process, trainer), "trainer.score_every")
    except UserError as error:
        raise UserError(error.full, "trainer.score_every=0 switches scoring off") from error


def _sampler(process: Process, trainer: TrainerOptions) -> SamplerOptions:
    return SamplerOptions(num_inference_steps=trainer.score_inference_steps, spacing=safe_spacing(process))


@dataclass(frozen=True)
class _Samples:
    """The samples of every scoring; recipes and masks are always the same, so that scores can be compared."""

    plans: Sequence[tuple[Recipe, ModelCase, Label]]
    card: Card
    batch_size: int
    guidance_scale: float

    @property
    def masks(self) -> list[Label]:
        return [mask for _, _, mask in self.plans]

    def draw(self, model: DiffusionModel) -> list[Image]:
        images = []
        for first in range(0, len(self.plans), self.batch_size):
            recipes, hosts, masks = zip(*self.plans[first : first + self.batch_size], strict=True)
            made = sample_images(model, self.card.schema, recipes, masks, self.guidance_scale, hosts=hosts)
            pairs = zip(made, hosts, strict=True)
            images += [_without_padding(*pair) if self.card.sliced else pair[0] for pair in pairs]
        return images


def sample_score(
    data: TrainingData,
    trainer: TrainerOptions,
    segmenter: SegmenterOptions,
    masks: MasksOptions,
    folder: Path,
    measures: bool = True,
) -> Score:
    """Make the scoring function of a training, which maps the averaged model and a step to scores by name.

    The docstring of the module describes the scores. The recipes are the same at every step.

    Args:
        data: data of the training; cases may have no label.
        trainer: this function reads `score_num`, `score_inference_steps`, `score_guidance_scale`, `selector_steps`,
            `batch_size` and `seed`.
        segmenter: options of the selecting segmenter.
        masks: the mask source and its options.
        folder: folder of the run.
        measures: True on rank 0. False on a rank that only takes part in sampling, because weights may be split; it
            waits until rank 0 is ready.

    Raises:
        UserError: as for `Recipes`; or there are too few training scans, or their grid is too small for spectra.
    """
    samples = _samples(data, trainer, masks)
    ready = folder / ".scoring"
    if not measures:
        # Do not wait with a collective operation, which may time out before the selector is trained.
        wait_for_first(folder, ready.exists)
        return lambda model, step: {} if samples.draw(model) else {}
    ready.unlink(missing_ok=True)
    schema, num_held_out = data.card.schema, len(data.val)
    real = _real(data.train, data.val)
    selector = _selector(data, trainer, segmenter, folder)
    ready.touch()

    def score(model: DiffusionModel, step: int) -> dict[str, float]:
        images = samples.draw(model)
        numbers = real.compare(images)
        worth = numbers["fidelity"]
        if selector is not None:
            numbers |= selector.judge(images, samples.masks, schema)
            faithfulness = min(1.0, numbers["faithfulness"])
            worth *= 2 * faithfulness / (faithfulness + worth)
        new = min(1.0, (1 - numbers["near_copies"]) / (1 - expected_near_copies(num_held_out)))
        return {"score": worth * new, **numbers}

    return score


def _samples(data: TrainingData, trainer: TrainerOptions, masks: MasksOptions) -> _Samples:
    """Choose the recipes to sample; raises an error if samples cannot be compared with the training scans."""
    card, train, labelled = data.card, data.train, data.labelled
    if not labelled:
        raise UserError("trainer.score_every: no training scan has a label to take a mask from", "set it to 0")
    if len(train) < 2:
        raise UserError("trainer.score_every: samples cannot be compared with a single training scan", "set it to 0")
    middle = [box.stop - box.start for box in central_box(train[0].image.shape[1:], CROP)]
    if min(middle) < LEAST_SIDE:
        raise UserError(
            f"trainer.score_every: spectra need {LEAST_SIDE} voxels along each axis in the middle of the grid, and it "
            f"has {' x '.join(map(str, middle))}",
            "set it to 0",
        )
    generate = GenerateOptions(guidance_scale=trainer.score_guidance_scale, seed=named_seed(trainer.seed, "scoring"))
    sampler = _sampler(build_process(**card.options["process"]), trainer)
    source = load_masks(masks).fitted(TrainingMasks.of(labelled))
    recipes = Recipes(
        labelled, source, generate, sampler, masks.source, "", card.attributes, max_per_host=masks.max_per_host
    )
    plans = [recipes(i) for i in range(trainer.score_num)]
    return _Samples(plans, card, trainer.batch_size, generate.guidance_scale)


def _without_padding(image: Image, host: ModelCase) -> Image:
    """Set the slices of a sample outside its host to background, because 2D networks are not trained on them."""
    empty = np.full_like(image, BACKGROUND)
    empty[..., host.slices] = image[..., host.slices]
    return empty


@dataclass(frozen=True)
class _Real:
    """Statistics of real scans: spectra of the training scans, sharpness and similarity of the validation scans."""

    spectrum_mean: NDArray[np.float64]
    spectrum_std: NDArray[np.float64]
    neighbours: TrainingNeighbours
    gradient: float
    near_copy: float
    held_out: int

    def compare(self, images: Sequence[Image]) -> dict[str, float]:
        spectra = _spectra(images).swapaxes(0, 1)  # (M, n, bands)
        modalities = list(zip(spectra, self.spectrum_mean, self.spectrum_std, strict=True))
        discrepancy = np.mean([spectral_discrepancy(*modality) for modality in modalities])
        similarity = np.array([self.neighbours.nearest(image)[0] for image in images])
        copies = similarity > self.near_copy
        return {
            "fidelity": float(1 / (1 + discrepancy)),
            "spectral_discrepancy": float(discrepancy),
            "gradient": _gradient(images) / self.gradient,
            "similarity": float(similarity.mean()),
            "near_copies": float(copies.mean()),
            "near_copies_p": near_copies_p(int(copies.sum()), len(images), self.held_out),
        }


def _real(train: Sequence[ModelCase], val: Sequence[ModelCase]) -> _Real:
    # There are more training than validation scans, so they give a better estimate of how spectra vary.
    spectra = _spectra([case.image for case in train])
    neighbours = TrainingNeighbours(case.image for case in train)
    held_out = [np.asarray(case.image) for case in val]
    return _Real(
        spectrum_mean=spectra.mean(0),
        spectrum_std=np.maximum(spectra.std(0), 1e-6),
        neighbours=neighbours,
        gradient=_gradient(held_out),
        near_copy=near_copy_threshold([neighbours.nearest(image)[0] for image in held_out]),
        held_out=len(held_out),
    )


def _spectra(images: Sequence[Image]) -> NDArray[np.float64]:
    """(n, M, bands)."""
    return np.array([[log_spectrum(volume) for volume in image] for image in images])


def _gradient(images: Sequence[Image]) -> float:
    return float(np.mean([mean_absolute_gradient(volume) for image in images for volume in image]))


@dataclass(frozen=True)
class _Selector:
    """The selecting segmenter, with its Dice and features on real scans."""

    net: Judge
    dice: float
    features_mean: NDArray[np.float64]
    features_std: NDArray[np.float64]
    validation: Sequence[Image]

    def judge(
        self, images: Sequence[Image], masks: Sequence[NDArray[np.uint8]], schema: LabelSchema
    ) -> dict[str, float]:
        dice = float(agreement(map(self.net.segment, images), masks, schema).mean())
        numbers = {"faithfulness": dice / self.dice, "dice": dice}
        if len(self.validation) > 1:
            numbers["kernel_distance"] = kernel_distance(self._features(images), self._features(self.validation))
        return numbers

    def _features(self, images: Sequence[Image]) -> NDArray[np.float64]:
        return (_features(self.net, images) - self.features_mean) / self.features_std


def _selector(
    data: TrainingData, trainer: TrainerOptions, segmenter: SegmenterOptions, folder: Path
) -> _Selector | None:
    """Train the selecting segmenter, or load it; None, with a warning, if it could not judge samples."""
    card, labelled, val = data.card, data.labelled, data.val
    judged = [case for case in val if case.label is not None]
    if len(labelled) < FEWEST_LABELLED or not judged:
        log.warning(
            "samples are scored by fidelity alone: %d labelled training and %d labelled validation scans are too few "
            "for a selecting segmenter",
            len(labelled),
            len(judged),
        )
        return None
    schema, problem = card.schema, Problem(card.modalities, card.schema, card.preprocessing)
    steps, seed = trainer.selector_steps, named_seed(trainer.seed, "selector")
    net = trained_judge(
        trainer.selector_backend,
        problem,
        segmenter,
        TrainingSet(labelled),
        steps,
        seed,
        "selector",
        folder / "selector.pt",
    )
    found = (net.segment(case.image) for case in judged)
    dice = float(agreement(found, [np.asarray(case.label) for case in judged], schema).mean())
    log.info("the selecting segmenter's mean foreground Dice on %d validation scans: %.3f", len(judged), dice)
    subjects = [case.case.subject for case in labelled]
    floor = trivial_dice([np.asarray(case.label) for case in labelled], subjects, schema)[MEAN_FOREGROUND]
    if dice < LEAST_DICE or dice <= floor:
        log.warning(
            "samples are scored by fidelity alone: a selecting segmenter so poor would say nothing about them (its "
            "Dice must be at least %g and above %.3f, that of a trivial baseline)",
            LEAST_DICE,
            floor,
        )
        return None
    features = _features(net, [np.asarray(case.image) for case in labelled])
    return _Selector(
        net=net,
        dice=dice,
        features_mean=features.mean(0),
        features_std=np.maximum(features.std(0), 1e-6),
        validation=[np.asarray(case.image) for case in val],
    )


def _features(net: Judge, images: Sequence[Image]) -> NDArray[np.float64]:
    return np.array([net.features(image) for image in images], dtype=np.float64)
