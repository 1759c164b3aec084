"""Recipes: everything that determines a pair, fixed before anything is sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema, foreground
from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.data.batches import shuffled_index
from medaug.data.cases import ModelCase
from medaug.diffusion.guidance import Guidance
from medaug.diffusion.noise import named_seed
from medaug.diffusion.process import Process
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.imaging.body import body_mask
from medaug.options import GenerateOptions, SamplerOptions
from medaug.synthesis.boxes import Boxes, HostBox
from medaug.synthesis.masks import Label, Masks, Reason
from medaug.tables import parse_parameters
from medaug.training.checkpoint import Card
from medaug.training.sampling import check_sampling
from medaug.training.tasks import Task

MOST_ATTEMPTS = 100
_IN_BODY = 0.98  # share of a new lesion that must lie in the body, whose border is uncertain by a voxel


def check_options(
    process: Process,
    schema: LabelSchema,
    generate: GenerateOptions,
    sampler: SamplerOptions,
    attributes: AttributeEncoder = NO_ATTRIBUTES,
) -> None:
    """Refuse options that the model does not support, before anything is written.

    Args:
        process, schema, attributes: process, label schema and attribute encoder of the model.
        generate, sampler: options of these groups.

    Raises:
        UserError: names the option and the remedy.
    """
    check_sampling(process, sampler)
    attributes.requested(generate.attributes)
    unknown = [name for name in generate.negative_classes if name not in schema.foreground]
    if unknown:
        raise UserError(
            f"negative_classes: {', '.join(unknown)} is not a class of the masks",
            f"choose from {', '.join(schema.foreground)}",
        )


def recipe_sampling(recipe: Recipe) -> Sampling:
    """The sampler, steps and spacing of a recipe."""
    return Sampling(
        recipe.sampler, recipe.num_inference_steps, recipe.spacing, recipe.eta, recipe.parameters, recipe.overlap
    )


def recipe_guidance(recipe: Recipe, schema: LabelSchema, scale: float | None = None) -> Guidance:
    """The guidance of a recipe.

    Args:
        recipe: recipe of a pair.
        schema: label schema of the model.
        scale: guidance scale to use instead of the recipe's.
    """
    negative = tuple(schema.names.index(name) for name in recipe.negative_classes)
    scale = recipe.guidance_scale if scale is None else scale
    return Guidance(scale, _interval(recipe.guidance_interval), recipe.guidance_rescale, negative)


def _interval(times: Sequence[float] | None) -> tuple[float, float] | None:
    return None if times is None else (times[0], times[1])


def check_task(task: Task, card: Card, path: Path) -> None:
    """Refuse a model that does not generate all modalities from masks alone.

    Args:
        task, card: task and card of the model.
        path: path of the model's checkpoint.

    Raises:
        UserError: names the checkpoint and the remedy.
    """
    if task.target == "label" and not task.num_images:
        raise UserError(
            "generates masks, not images",
            f"give it to a model that generates images, with masks=generated masks.checkpoint={path}",
            path=path,
        )
    if task.target != "image" or not task.mask or task.num_images:
        raise UserError("does not generate images from masks alone", "apply it to scans with medaug.predict", path=path)
    if left := [name for m, name in enumerate(card.modalities) if m not in task.generated]:
        raise UserError(
            f"does not generate {', '.join(left)}, which a pair needs", "train without task.modalities", path=path
        )


@dataclass(frozen=True)
class Recipes:
    """Makes the recipe of each pair.

    Attributes:
        hosts: labelled training cases.
        masks: the source of masks.
        generate, sampler: options of these groups.
        source: name of the mask source, which is recorded.
        checkpoint: SHA-256 of the checkpoint that generates the images.
        attributes: attribute encoder of the model.
        max_per_host: most pairs of a host; None: any number.
        boxes: cuts a box out of the host for each attempt; None: the host as a whole.
        rejected: for each pair and attempt, how many masks were rejected just before it, by kind of reason; filled
            while recipes are made.
    """

    hosts: Sequence[ModelCase]
    masks: Masks
    generate: GenerateOptions
    sampler: SamplerOptions
    source: str
    checkpoint: str
    attributes: AttributeEncoder = NO_ATTRIBUTES
    max_per_host: int | None = None
    boxes: Boxes | None = None
    rejected: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, index: int, first_attempt: int = 0) -> tuple[Recipe, ModelCase, Label]:
        """Recipe number `index` with its host and its mask (X, Y, Z): a pure function of `self` and the arguments.

        Hosts are used in seeded permutations, so all are used equally often. If a mask is not plausible, another one is
        made with the next attempt number. Attributes are those of the host, unless the options replace them.
        `first_attempt` skips earlier attempts, whose images were rejected.

        Raises:
            UserError: there is no plausible mask in `MOST_ATTEMPTS` attempts, the model was not trained with an
                attribute, or the host or its mask was used as often as it may be.
        """
        host, (source, masks) = self.hosts[self._host(index)], self.source_of(index)
        attempt, seed, host, mask = self._mask(masks, index, host, first_attempt)
        generate, sampler = self.generate, self.sampler
        recipe = Recipe(
            index=index,
            attempt=attempt,
            host=host.case.name,
            host_subject=host.case.subject,
            mask_source=source,
            mask_parameters=dict(masks.parameters) | ({"where": host.ends} if isinstance(host, HostBox) else {}),
            guidance_scale=generate.guidance_scale,
            sampler=sampler.name,
            num_inference_steps=sampler.num_inference_steps,
            eta=sampler.eta,
            seed=seed,
            checkpoint=self.checkpoint,
            spacing=sampler.spacing,
            guidance_interval=generate.guidance_interval,
            guidance_rescale=generate.guidance_rescale,
            negative_classes=generate.negative_classes,
            attributes=self.attributes.of(host.case, host.affine) | self.attributes.requested(generate.attributes),
            parameters=parse_parameters(sampler.parameters),
            overlap=sampler.overlap,
        )
        return recipe, host, mask

    def source_of(self, index: int) -> tuple[str, Masks]:
        """The mask source of a pair, with its name.

        Raises:
            UserError: the host of the pair, or its mask, was used as often as it may be.
        """
        hosts = len(self.hosts)
        if self.max_per_host is not None and index >= self.max_per_host * hosts:
            raise UserError(
                f"masks.max_per_host={self.max_per_host}: {hosts} hosts give at most {self.max_per_host * hosts} pairs",
                "make fewer pairs, or leave it out",
            )
        name, masks = self.masks.chosen(index, self._host, hosts, self.generate.seed)
        return name or self.source, masks

    def _host(self, index: int) -> int:
        return shuffled_index(index, len(self.hosts), named_seed(self.generate.seed, "host"))

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """Further content of a pair's record: whose data went into it, and which masks were rejected before it."""
        _, masks = self.source_of(recipe.index)
        subjects = {recipe.host_subject, *masks.subjects}
        record: dict[str, Any] = {}
        if masks.seen is not None:
            subjects |= masks.seen.in_split("train")
            record["mask_validation_subjects"] = sorted(masks.seen.in_split("val"))
        if kinds := self.rejected.get((recipe.index, recipe.attempt)):
            record["mask_rejections"] = kinds
        return {"subjects": sorted(subjects), **record}

    def _mask(self, masks: Masks, index: int, host: ModelCase, first_attempt: int) -> tuple[int, int, ModelCase, Label]:
        """The number and seed of the first attempt that gives a plausible mask, the host or its box, and the mask."""
        reason: str | None = None
        kinds: Counter[str] = Counter()
        for attempt in range(first_attempt, first_attempt + MOST_ATTEMPTS):
            seed = named_seed(self.generate.seed, "pair", index, attempt)
            if self.boxes is not None:
                host = self.boxes.at(host.case, named_seed(seed, "box"))
            assert host.label is not None
            mask = masks.make(np.asarray(host.label), named_seed(seed, "mask"))
            if (reason := _rejection(masks, mask, host)) is None:
                self.rejected[index, attempt] = dict(sorted(kinds.items()))
                return attempt, seed, host, mask
            kinds[getattr(reason, "kind", reason)] += 1
        raise UserError(
            f"pair {index}, host {host.case.name}: no plausible mask in {MOST_ATTEMPTS} attempts (the last: {reason})",
            masks.remedy,
        )


def with_room(masks: Masks, hosts: Sequence[ModelCase], boxes: Boxes | None = None) -> list[ModelCase]:
    """The hosts for which at least 3 of 30 masks are plausible; with fewer, `MOST_ATTEMPTS` might not be enough."""

    def fits(host: ModelCase, seed: int) -> bool:
        host = host if boxes is None else boxes.at(host.case, seed)
        return _rejection(masks, masks.make(np.asarray(host.label), seed), host) is None

    def has_room(host: ModelCase) -> bool:
        return len(list(islice(filter(None, (fits(host, named_seed(0, "room", i)) for i in range(30))), 3))) == 3

    return [host for host in hosts if has_room(host)]


def _rejection(masks: Masks, mask: Label, host: ModelCase) -> str | None:
    if masks.inside_scan and foreground(mask).sum() > foreground(mask[host.field_of_view]).sum():
        return Reason("the mask reaches beyond its host's scan", "beyond the scan")
    new = foreground(mask) & (mask != host.label)
    if masks.inside_body and new.any() and _body(host)[new].mean() < _IN_BODY:
        return Reason("the lesion lies outside its host's body", "outside the body")
    return masks.rejection(mask, np.asarray(host.label))


def _body(host: ModelCase) -> NDArray[np.bool_]:
    if isinstance(host, HostBox):
        return host.body
    return np.any([body_mask(volume) for volume in np.asarray(host.image)], axis=0)
