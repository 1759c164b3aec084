"""The request to a trained model, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medaug.cohort.manifest import Case, Manifest
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.options import PredictOptions, SamplerOptions
from medaug.training.checkpoint import Card
from medaug.training.checks import check_overlap
from medaug.training.model import DiffusionModel
from medaug.training.sampling import check_sampling
from medaug.training.tasks import Task

FEW = 8
"""Default number of samples of a label map; fewer say little about the model's uncertainty."""


@dataclass(frozen=True)
class Request:
    """What is to be predicted for which cases; `check_request` makes it.

    Attributes:
        manifest: manifest of the cases.
        cases: the cases, in order.
        inputs: indices of the model's modalities that are read from the scans.
        truth: whether the scans have the modalities that the model generates, so that the two can be compared.
        inpainted: class indices whose voxels are inpainted; empty: no inpainting, the model's own task.
        num_samples: samples per case.
        sampling: sampler, steps and spacing.
    """

    manifest: Manifest
    cases: tuple[Case, ...]
    inputs: tuple[int, ...]
    truth: bool
    inpainted: tuple[int, ...]
    num_samples: int
    sampling: Sampling


def check_request(
    card: Card, model: DiffusionModel, cohort: Path, predict: PredictOptions, sampler: SamplerOptions
) -> Request:
    """Check the options against the model and the scans, and make the request.

    Args:
        card, model: card and model of the checkpoint.
        cohort: manifest of the training.
        predict, sampler: options.

    Raises:
        UserError: names the option, what is wrong, and the remedy.
    """
    task = model.task
    sampling = check_sampling(model.process, sampler)
    check_overlap(model, sampler)
    _check_task(task, predict)
    inpainted = _inpainted_classes(card, task, predict)
    inputs = {*task.given, *(task.generated if inpainted or task.degradation != "none" else ())}
    if not inputs:
        remedy = "inpaint=[CLASS] inpaints a class in real scans" if task.target == "image" else "use medaug.generate"
        raise UserError("the model takes no scans as input, so there is nothing to predict", remedy)
    manifest, cases = _cases(card, cohort, predict)
    if missing := [card.modalities[m] for m in sorted(inputs) if card.modalities[m] not in manifest.modalities]:
        raise UserError(
            f"{manifest.name}: has the modalities {', '.join(manifest.modalities)}, but the model also needs "
            f"{', '.join(missing)}",
            "name them in the manifest as in the training cohort",
        )
    if (task.mask or inpainted) and any(case.label is None for case in cases):
        without = next(case.name for case in cases if case.label is None)
        raise UserError(f"{without}: the model needs a label map, and this case has none", "leave it out")
    labelled = any(case.label is not None for case in cases)
    if (task.target == "label" or task.mask or inpainted) and labelled and manifest.schema.labels != card.schema.labels:
        raise UserError(f"{manifest.name}: its labels are not those that the model was trained on", "remap them")
    has_generated = {card.modalities[m] for m in task.generated} <= set(manifest.modalities)
    return Request(
        manifest=manifest,
        cases=cases,
        inputs=tuple(sorted(inputs)),
        truth=not inpainted and has_generated and (task.degradation == "none" or predict.degrade),
        inpainted=inpainted,
        num_samples=predict.num_samples or (FEW if task.target == "label" else 1),
        sampling=sampling,
    )


def _check_task(task: Task, predict: PredictOptions) -> None:
    """Refuse options that have no effect on the model's task."""
    if predict.degrade and task.degradation == "none":
        raise UserError(
            "degrade=true: the model does not enhance scans, so there is nothing to degrade", "leave it out"
        )
    if predict.probabilities and task.target != "label":
        raise UserError("probabilities=true: the model generates images, not labels", "leave it out")
    if predict.guidance_scale != 1 and not (task.mask or task.num_images):
        raise UserError(
            f"guidance_scale={predict.guidance_scale:g}: the model has no condition to guide towards", "leave it out"
        )


def _inpainted_classes(card: Card, task: Task, predict: PredictOptions) -> tuple[int, ...]:
    if not predict.inpaint:
        return ()
    if task.target != "image" or task.num_images:
        raise UserError("inpaint: needs a model that generates images from masks or unconditionally", "leave it out")
    if predict.remove and not task.mask:
        raise UserError(
            "remove=true: the model has no mask as its condition, so no class can be removed from it", "leave it out"
        )
    if unknown := [name for name in predict.inpaint if name not in card.schema.foreground]:
        raise UserError(
            f"inpaint: {', '.join(unknown)} is not a class of the masks",
            f"choose from {', '.join(card.schema.foreground)}",
        )
    return tuple(card.schema.names.index(name) for name in predict.inpaint)


def _cases(card: Card, cohort: Path, predict: PredictOptions) -> tuple[Manifest, tuple[Case, ...]]:
    if predict.manifest is not None:
        manifest = Manifest.load(predict.manifest)
        return manifest, manifest.cases
    split = predict.split or "val"
    manifest = Manifest.load(cohort)
    cases = manifest.split(split)
    if predict.inpaint:
        cases = tuple(case for case in cases if case.label is not None)
    if not cases:
        labelled = " labelled" if predict.inpaint else ""
        raise UserError(f"split={split}: has no{labelled} scans", "choose another, or give manifest=FILE.json")
    return manifest, cases
