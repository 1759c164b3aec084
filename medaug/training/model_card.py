"""The model card of a training: README.md in the format of the Hugging Face hub, from the run's own values."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from medaug.cohort.hub import FILE, licence_fields, page, plain, table
from medaug.cohort.manifest import Manifest
from medaug.files import atomic_write
from medaug.training.checkpoint import Card
from medaug.training.fit import TrainingResult


def write_model_card(card: Card, cohort: Manifest, result: TrainingResult, folder: Path) -> None:
    """Write README.md beside the checkpoints.

    Args:
        card: the checkpoint's card.
        cohort: the cohort that the model was trained on.
        result: the result of the training.
        folder: the folder of the training.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(model_card(card, cohort, result), encoding="utf-8")


def model_card(card: Card, cohort: Manifest, result: TrainingResult) -> str:
    """The card as Markdown with a YAML header; arguments are those of `write_model_card`."""
    title = f"Diffusion model of {card.experiment}" + (" (phantoms)" if card.phantom else "")
    header = {
        **licence_fields(cohort.licence),
        "library_name": "medaug",
        "tags": ["medical", "diffusion", "medaug", *(["phantom"] if card.phantom else [])],
    }
    return page(header, f"# {title}\n", _contents(card, cohort, result), _use(card), _limits(card, cohort, result))


def _contents(card: Card, cohort: Manifest, result: TrainingResult) -> str:
    rows = _model_rows(card, result) | _cohort_rows(card, cohort, result)
    rows["validation loss"] = "none" if result.validation_loss is None else f"{result.validation_loss:.4g}"
    if result.best is not None:
        rows["best.ckpt"] = f"step {result.best['step']}, chosen by the score {result.best['score']:.3f} of its samples"
    rows["made with"] = f"medaug {version('medaug')}"
    return (
        "The weights are in `last.ckpt`, which also holds the preprocessing, the label schema and the subjects that "
        "the training used. `config.yaml` has every option, `manifest.json` the cohort with its splits.\n\n"
        + table(rows)
    )


def _model_rows(card: Card, result: TrainingResult) -> dict[str, str]:
    options = card.options
    task, network, process, trainer = (options[name] for name in ("task", "network", "process", "trainer"))
    grid, spacing = "x".join(map(str, card.preprocessing.shape)), card.preprocessing.grid.spacing
    sides = "" if spacing is None else f" of {' x '.join(f'{side:g}' for side in spacing)} mm"
    devices = f"{trainer['batch_size'] * trainer['accumulate']} samples per device and step"
    return {
        "generates": _generated(card),
        "from": ", ".join(_conditions(card, task)) or "noise alone",
        "classes": ", ".join(card.schema.foreground),
        "grid": f"{grid} voxels{sides}",
        "network": f"{network['name']}, {network['spatial_dims']}D, {result.parameters / 1e6:.2f} M parameters, "
        f"codec {options['codec']['name']}",
        "process": f"{process['noise_schedule']}, predicts {process['prediction_type']}",
        "training": f"{result.step} steps, {devices}",
        **({} if card.base is None else {"started from": f"{card.base.experiment}, SHA-256 `{card.base.sha256}`"}),
    }


def _generated(card: Card) -> str:
    task = card.options["task"]
    if task["target"] == "label":
        return "masks"
    return ", ".join(task["modalities"] or card.modalities)


def _conditions(card: Card, task: dict[str, Any]) -> list[str]:
    found = ["masks"] if task["mask"] and task["target"] == "image" else []
    found += list(task["given"])
    found += [] if task["degradation"] == "none" else [f"degraded images ({task['degradation']})"]
    return found + [attribute.name for attribute in card.attributes.attributes]


def _cohort_rows(card: Card, cohort: Manifest, result: TrainingResult) -> dict[str, str]:
    subjects = {split: len(names) for split, names in card.seen.subjects.items()}
    about = f": {plain(cohort.description)}" if cohort.description else ""
    return {
        "cohort": f"{cohort.name}{about}",
        "licence": f"{cohort.licence or 'unknown'} (that of the cohort, which the model inherits)",
        "training scans": f"{result.training_cases}, of which {result.labelled_cases} have a label",
        "validation scans": str(result.validation_cases),
        "subjects seen": ", ".join(f"{number} in {split}" for split, number in sorted(subjects.items()))
        + ("" if card.base is None else ", those of earlier trainings included"),
    }


def _use(card: Card) -> str:
    pairs = card.options["task"]["target"] == "image" and card.options["task"]["mask"]
    stage = "generate" if pairs else "predict"
    return (
        "## Use\n\n"
        f"    medaug {stage} experiment={card.experiment}\n\n"
        "Reading the checkpoint runs no code from it. In Python: `medaug.load(FILE)`.\n"
    )


def _limits(card: Card, cohort: Manifest, result: TrainingResult) -> str:
    lines = [
        "## Limits\n",
        "- Not for clinical use. `medaug benchmark` measures whether the images that it generates help a segmenter.",
        "- It may reproduce scans that it was trained on. Do not treat it, or what it generates, as anonymous.",
        "- The checkpoint lists the subjects that it was trained and validated on. Do not evaluate a model that was "
        "trained with its images on them.",
        "- It knows only the scanners, protocols and anatomies of this cohort.",
    ]
    if card.phantom:
        lines.insert(1, "- The cohort consists of phantoms, not of patients.")
    if card.options["network"]["spatial_dims"] == 2:
        lines.append("- It generates each axial slice by itself; volumes are not consistent along the third axis.")
    if result.validation_cases == 0:
        lines.append("- No scan was held back for validation.")
    if not cohort.licence:
        lines.append("- The cohort's manifest names no licence. Find out which one applies before you share the model.")
    return "\n".join(lines) + "\n"
