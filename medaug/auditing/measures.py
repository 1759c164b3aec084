"""The table of audit measures.

A measure is one entry of `MEASURES` and one function from `Material` to groups of values. It then appears in
`measures.csv`, in `faithfulness.json` under `measures`, and in the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medaug.auditing.results import GUIDANCE, Group
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.evaluation.faithfulness import agreement, derangement
from medaug.evaluation.texture import mean_absolute_gradient
from medaug.options import AuditOptions
from medaug.segmentation.protocol import Judge
from medaug.synthesis.generation import sample_images
from medaug.tables import Table
from medaug.training.model import DiffusionModel

log = logging.getLogger(__name__)

PICTURED = 3
"""Pairs of the guidance sweep that are kept for its picture."""

Labels = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Generator:
    """The model that made the pairs, and their recipes by the names of the pairs."""

    model: DiffusionModel
    recipes: Mapping[str, Recipe]


@dataclass(frozen=True)
class Swept:
    """Pairs sampled again at one guidance scale.

    Attributes:
        scale: guidance scale.
        judged: the judge's label maps of the images.
        shown: (PICTURED, X, Y, Z), the first modality of the first images, for the picture.
    """

    scale: float
    judged: Labels
    shown: NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """What is measured, in model space.

    Attributes:
        schema: label schema.
        settings: options of the audit.
        val: labelled real validation cases.
        synthetic: the pairs.
        judge: segmenter that is used for nothing else; None: there is none.
        generator: generator of the pairs; None: not available, so nothing can be sampled again.
        train: labelled real training cases; None: not available.
        spacing: voxel size in mm, the same for all cases; 1 if the cases keep their own.
    """

    schema: LabelSchema
    settings: AuditOptions
    val: Sequence[ModelCase]
    synthetic: Sequence[ModelCase]
    judge: Judge | None = None
    generator: Generator | None = None
    train: Sequence[ModelCase] | None = None
    spacing: Sequence[float] = (1.0, 1.0, 1.0)

    def has(self, needs: Sequence[str]) -> bool:
        """Whether everything that a measure needs is available."""
        return all(getattr(self, name) is not None for name in needs)

    def masks(self, cases: Sequence[ModelCase]) -> Labels:
        """The label maps of cases, (X, Y, Z)."""
        return [np.asarray(case.label) for case in cases]

    def judged(self, images: Sequence[NDArray[np.float32]]) -> Labels:
        """The judge's label maps of images (M, X, Y, Z)."""
        assert self.judge is not None
        return [self.judge.segment(image) for image in images]

    @cached_property
    def judged_synthetic(self) -> Labels:
        """The judge's label maps of the synthetic images."""
        return self.judged([case.image for case in self.synthetic])

    @cached_property
    def sweep(self) -> list[Swept]:
        """The first `audit.guidance_num` pairs, sampled again at every guidance scale with the same masks and seeds."""
        found = []
        for scale in self.settings.guidance_scales:
            log.info("guidance scale %g, %d pairs", scale, len(self.swept))
            images = self._sample(scale)
            found.append(Swept(scale, self.judged(list(images)), images[:PICTURED, 0]))
        return found

    @property
    def swept(self) -> Sequence[ModelCase]:
        """The pairs of the sweep."""
        return self.synthetic[: self.settings.guidance_num]

    def _sample(self, scale: float) -> NDArray[np.float32]:
        assert self.generator is not None
        recipes = self.generator.recipes
        if scale == 0:  # the unconditional baseline: drop every mask-dependent setting
            recipes = {
                name: replace(recipe, guidance_interval=None, guidance_rescale=0.0, negative_classes=[])
                for name, recipe in recipes.items()
            }
        size = self.settings.batch_size
        batches = [self.swept[i : i + size] for i in range(0, len(self.swept), size)]
        return np.concatenate(
            [
                sample_images(
                    self.generator.model,
                    self.schema,
                    [recipes[case.case.name] for case in batch],
                    [np.array(case.label) for case in batch],
                    scale,
                    hosts=batch,
                )
                for batch in batches
            ]
        )


@dataclass(frozen=True)
class Measure:
    """An entry of the table of measures.

    Attributes:
        title: title in the report.
        unit: unit of the values; empty if they have none.
        digits: decimals shown.
        higher_is_better: whether higher values are better; None: synthetic images should have the value of real ones.
        note: explanation for the report.
        function: returns the groups of values of a `Material`.
        needs: the attributes of `Material` that must be available, else the measure is left out: "judge", "generator",
            "train".
    """

    title: str
    unit: str
    digits: int
    higher_is_better: bool | None
    note: str
    function: Callable[[Material], Iterator[Group]]
    needs: Sequence[str] = field(default=())


def faithfulness(material: Material) -> Iterator[Group]:
    """The judge's agreement with the masks: on real images, on synthetic ones, and by chance."""
    val, synthetic, seed = material.val, material.synthetic, material.settings.seed
    masks, judged = material.masks(synthetic), material.judged_synthetic
    real = agreement(material.judged([case.image for case in val]), material.masks(val), material.schema)
    yield Group.of_cases("real_validation", val, real, seed)
    yield Group.of_cases("synthetic", synthetic, agreement(judged, masks, material.schema), seed)
    others = derangement([case.case.subject for case in synthetic], seed)
    chance = agreement(judged, [masks[i] for i in others], material.schema)
    yield Group.of_cases("shuffled", synthetic, chance, seed)


def guidance(material: Material) -> Iterator[Group]:
    """The judge's agreement with the masks at every guidance scale."""
    masks = material.masks(material.swept)
    for swept in material.sweep:
        values = agreement(swept.judged, masks, material.schema)
        yield Group.of_cases(f"{GUIDANCE}{swept.scale:g}", material.swept, values, material.settings.seed)


def sharpness(material: Material) -> Iterator[Group]:
    """Mean absolute gradient of real and synthetic images, averaged over modalities."""
    for images, cases in (("real_validation", material.val), ("synthetic", material.synthetic)):
        values = np.array([np.mean([mean_absolute_gradient(volume) for volume in case.image]) for case in cases])
        yield Group.of_cases(images, cases, values, material.settings.seed)


FAITHFULNESS = Measure(
    title="Faithfulness",
    unit="",
    digits=3,
    higher_is_better=True,
    note="mean foreground Dice of the judge's segmentation against the mask",
    function=faithfulness,
    needs=("judge",),
)
GUIDANCE_SWEEP = Measure(
    title="Faithfulness by guidance scale",
    unit="",
    digits=3,
    higher_is_better=True,
    note="mean foreground Dice of the judge, on the same masks and seeds",
    function=guidance,
    needs=("judge", "generator"),
)
SHARPNESS = Measure(
    title="Sharpness",
    unit="",
    digits=3,
    higher_is_better=None,
    note="mean absolute difference of neighbouring voxels, of intensities from -1 to 1",
    function=sharpness,
)
MEASURES: Table[Measure] = Table("measures", "audit measure", Measure)
