"""The request to a trained model, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medaug.cohort.manifest import Case, Manifest
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.options import PredictOptions, SamplerOptions
from medaug.training.checkpoint import Card
from medaug.training.model import DiffusionModel
from medaug.training.sampling import check_sampling
from medaug.training.tasks import Task

FEW = 8
"""Default number of samples of a label map; fewer say little about the model's uncertainty."""


@dataclass(frozen=True)
class Request:
    """A model applied to cases, see `check_request`.

    Attributes:
        manifest: manifest of the cases.
        cases: the cases, in order.
        told: indices of the model's modalities that are read from the scans.
        truth: whether the scans contain the real version of what the model generates, for comparison.
        redrawn: class indices whose voxels are inpainted; empty: the model's own task.
        num_samples: samples per case.
        sampling: sampler, steps and spacing.
    """

    manifest: Manifest
    cases: tuple[Case, ...]
    told: tuple[int, ...]
    truth: bool
    redrawn: tuple[int, ...]
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
    _check_task(task, predict)
    redrawn = _redrawn(card, task, predict)
    told = {*task.given, *(task.drawn if redrawn or task.degradation != "none" else ())}
    if not told:
        remedy = "inpaint=[CLASS] redraws a class in real scans" if task.target == "image" else "use medaug.generate"
        raise UserError("the model is told nothing of a scan, so there is nothing to predict", remedy)
    manifest, cases = _cases(card, cohort, predict)
    if missing := [card.modalities[m] for m in sorted(told) if card.modalities[m] not in manifest.modalities]:
        raise UserError(
            f"{manifest.name}: has the modalities {', '.join(manifest.modalities)}, and the model also needs "
            f"{', '.join(missing)}",
            "name them in the manifest as the training cohort does",
        )
    if (task.mask or redrawn) and any(case.label is None for case in cases):
        without = next(case.name for case in cases if case.label is None)
        raise UserError(f"{without}: the model is told the label map, and this case has none", "leave it out")
    labelled = any(case.label is not None for case in cases)
    if (task.target == "label" or task.mask or redrawn) and labelled and manifest.schema.labels != card.schema.labels:
        raise UserError(f"{manifest.name}: its labels are not those that the model was trained on", "remap them")
    drawn_too = {card.modalities[m] for m in task.drawn} <= set(manifest.modalities)
    return Request(
        manifest=manifest,
        cases=cases,
        told=tuple(sorted(told)),
        truth=not redrawn and drawn_too and (task.degradation == "none" or predict.degrade),
        redrawn=redrawn,
        num_samples=predict.num_samples or (FEW if task.target == "label" else 1),
        sampling=sampling,
    )


def _check_task(task: Task, predict: PredictOptions) -> None:
    """Refuse options that have no effect on the model's task."""
    if predict.degrade and task.degradation == "none":
        raise UserError("degrade=true: the model enhances no scans, so there is nothing to degrade", "leave it out")
    if predict.probabilities and task.target != "label":
        raise UserError("probabilities=true: the model draws images, not labels", "leave it out")
    if predict.guidance_scale != 1 and not (task.mask or task.num_images):
        raise UserError(f"guidance_scale={predict.guidance_scale:g}: the model has no condition to be guided by")


def _redrawn(card: Card, task: Task, predict: PredictOptions) -> tuple[int, ...]:
    if not predict.inpaint:
        return ()
    if task.target != "image" or task.num_images:
        raise UserError("inpaint: only models that draw images from masks, or from nothing, can", "leave it out")
    if predict.remove and not task.mask:
        raise UserError("remove=true: the model is told no mask that a class could be removed from", "leave it out")
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
