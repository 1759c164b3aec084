"""Runs an audit: trains the judge, computes all measures, and draws the guidance sweep."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medaug.auditing.measures import MEASURES, Generator, Material
from medaug.auditing.results import Audit
from medaug.cohort.provenance import Recipe
from medaug.comparison.external import refuse_held_out_masks
from medaug.comparison.inputs import Inputs
from medaug.data.contents import refuse_copies
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.scores import MEAN_FOREGROUND
from medaug.options import Options
from medaug.pictures.figures import guidance_picture, save_figure
from medaug.processes import choose_device
from medaug.segmentation.backends import trained_judge
from medaug.segmentation.protocol import Problem, TrainingSet
from medaug.training.checkpoint import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def check_pairs(inputs: Inputs) -> int:
    """Refuse pairs that cannot be audited; returns their number.

    Raises:
        UserError: there are fewer than two pairs.
    """
    assert inputs.pairs is not None
    if len(inputs.pairs.records) < 2:
        raise UserError("the audit needs at least two pairs", "generate more (num=2)", path=inputs.pairs.manifest.root)
    return len(inputs.pairs.records)


def audit(inputs: Inputs, options: Options, folder: Path) -> Audit:
    """Train the judge, compute every measure, and draw the guidance sweep.

    Args:
        inputs: generator, pairs and cohort.
        options: options of the stage; `audit` and `segmenter` are read.
        folder: folder for the judge (judge.pt) and, if the pairs can be sampled again, the picture (guidance.png).

    Raises:
        UserError: there is no labelled validation scan, two scans of different splits are equal, an external pair has
            the mask of a validation scan, or the training of the judge failed.
    """
    assert inputs.pairs is not None
    card = inputs.card
    train, val, synthetic = inputs.load_real("train"), inputs.load_real("val"), inputs.load_synthetic()
    if not val:
        raise UserError(
            "no labelled validation scan to check the judge with",
            "raise data.val_fraction",
            path=inputs.cohort.root,
        )
    refuse_copies({"train": train, "val": val, "synthetic": synthetic})
    if inputs.external is not None:
        refuse_held_out_masks(val, synthetic)
    settings, problem = options.audit, Problem(inputs.cohort.modalities, inputs.cohort.schema, card.preprocessing)
    steps, seed, path = settings.judge_steps, settings.seed, folder / "judge.pt"
    judge = trained_judge(settings.backend, problem, options.segmenter, TrainingSet(train), steps, seed, "judge", path)
    spacing = card.preprocessing.spacing or (1.0, 1.0, 1.0)
    material = Material(card.schema, settings, val, synthetic, judge, _generator(inputs), train, spacing)
    results = {
        name: list(measure.function(material)) for name, measure in MEASURES.items() if material.has(measure.needs)
    }
    if material.generator is not None:
        save_figure(_guidance_figure(material, inputs), folder / "guidance.png")
    labels, subjects = [np.asarray(case.label) for case in train], [case.case.subject for case in train]
    floor = trivial_dice(labels, subjects, inputs.cohort.schema)[MEAN_FOREGROUND]
    real, made = (
        next(g.interval for g in results["faithfulness"] if g.images == i) for i in ("real_validation", "synthetic")
    )
    learned = real.mean > floor
    return Audit(
        smoke="smoke" in (options.preset, card.preset),
        results=results,
        floor=floor,
        ratio=made.mean / real.mean if learned else None,
        ratio_low=made.low / real.mean if learned and not np.isnan(made.low) else None,
        judge={
            "steps": settings.judge_steps,
            "seed": settings.seed,
            "num_training_cases": len(train),
        },
    )


def _generator(inputs: Inputs) -> Generator | None:
    """The generator of the experiment's own pairs; None for external pairs, which cannot be sampled again."""
    if inputs.checkpoint is None or inputs.external is not None or inputs.pairs is None:
        return None
    _, model = load_model(inputs.checkpoint, choose_device())
    return Generator(model, {record["name"]: Recipe.from_mapping(record) for record in inputs.pairs.records})


def log_audit(result: Audit, path: Path) -> None:
    """Log the judge's Dice, and a warning if the judge has learned nothing.

    Args:
        result: result of the audit.
        path: file of the result, for the message.
    """
    real, synthetic, shuffled = (
        result.interval("faithfulness", images) for images in ("real_validation", "synthetic", "shuffled")
    )
    assert real is not None and synthetic is not None and shuffled is not None
    log.info(
        "the judge's mean foreground Dice: %.3f [%.3f, %.3f] on %d synthetic images, %.3f on %d real validation "
        "images, %.3f with the masks shuffled; %s",
        *(synthetic.mean, synthetic.low, synthetic.high, synthetic.n, real.mean, real.n, shuffled.mean, path),
    )
    if result.ratio is None:
        log.warning(
            "the judge's Dice on real images is not above that of the trivial baseline (%.3f): the judge has learned "
            "nothing, so its numbers say nothing about the images; raise judge_steps",
            result.floor,
        )


def _guidance_figure(material: Material, inputs: Inputs) -> Figure:
    """The first pairs of the sweep at every guidance scale."""
    assert material.generator is not None
    cohort, recipes = inputs.cohort, material.generator.recipes
    rows = [
        (f"pair {recipes[case.case.name].index}, {cohort.modalities[0]}", np.asarray(case.label), images)
        for case, *images in zip(material.swept, *(swept.shown for swept in material.sweep), strict=False)
    ]
    title = "Same seed and mask, growing guidance" + (" (phantoms, not patients)" if cohort.phantom else "")
    scales = [swept.scale for swept in material.sweep]
    return guidance_picture(rows, scales, title, cohort.schema.foreground, window=(-1.0, 1.0))
