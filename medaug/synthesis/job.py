"""The work of medaug.generate: makes pairs, their contact sheet and a denoising strip with a trained model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medaug.cohort.manifest import Case, Manifest
from medaug.data.cases import ModelCase, load_cases
from medaug.data.contents import case_contents
from medaug.data.quantiles import find_quantiles, with_quantiles
from medaug.errors import UserError
from medaug.options import (
    GenerateOptions,
    Options,
    SamplerOptions,
    ScoringOptions,
    ScreenOptions,
    SegmenterOptions,
)
from medaug.pictures.figures import busiest_slice, contact_sheet, save_figure
from medaug.pictures.strip import denoising_strip, evenly
from medaug.processes import choose_device, process_count, process_rank
from medaug.synthesis.attempts import Attempts
from medaug.synthesis.boxes import Boxes, box_space, boxed, own_labels, refuse_boxes
from medaug.synthesis.composed import ComposedMasks, Lesions
from medaug.synthesis.dataset_card import write_dataset_card
from medaug.synthesis.estimate import estimate_pairs
from medaug.synthesis.generation import Manner, generate_pairs, sample_images
from medaug.synthesis.insertion import PAIRS, REMOVE, EditedMasks, Insertion, edited_masks, unlabelled_host
from medaug.synthesis.masks import ImageModel, Masks, TrainingMasks
from medaug.synthesis.pairs import Pairs
from medaug.synthesis.recipes import Recipes, check_options, check_task, with_room
from medaug.synthesis.screened import Conclusion, Preparation
from medaug.synthesis.sources import load_masks
from medaug.synthesis.usage import Usage
from medaug.training.checkpoint import Card, load_experiment, refuse_changed_scans
from medaug.training.checks import check_overlap
from medaug.training.model import DiffusionModel

log = logging.getLogger(__name__)

_SHOWN = 16  # pairs on the contact sheet


@dataclass(frozen=True)
class Job:
    """A trained model and the pairs to make with it.

    Attributes:
        model, card: model and card of the checkpoint.
        checkpoint: SHA-256 of the checkpoint.
        cohort: the cohort that the model was trained on.
        masks: the source of masks.
        generate, sampler: options of these groups.
        source: name of the mask source.
        max_per_host: most pairs of a host; None: any number.
        cache: folder with the cache of scans in model space.
        screen, segmenter, scoring: options of the screening.
    """

    model: DiffusionModel
    card: Card
    checkpoint: str
    cohort: Manifest
    masks: Masks
    generate: GenerateOptions
    sampler: SamplerOptions
    source: str
    max_per_host: int | None
    cache: Path
    screen: ScreenOptions
    segmenter: SegmenterOptions
    scoring: ScoringOptions

    @classmethod
    def load(cls, checkpoint: Path, options: Options, cache: Path) -> Job:
        """Load the model and the mask generator, if there is one; nothing is written.

        Args:
            checkpoint: checkpoint of the model; the `manifest.json` of its training must be beside it.
            options: this function reads `generate`, `masks`, `sampler`, `screen`, `segmenter` and `scoring`.
            cache: folder with the cache of scans in model space.

        Raises:
            UserError: the model does not support the options.
        """
        loaded = load_experiment(checkpoint, options.experiment, choose_device())
        return cls.of(checkpoint, loaded, options, cache)

    @classmethod
    def of(cls, checkpoint: Path, loaded: tuple[str, Card, DiffusionModel], options: Options, cache: Path) -> Job:
        """As `load`, for a checkpoint whose SHA-256, card and model have already been loaded."""
        digest, card, model = loaded
        check_task(model.task, card, checkpoint)
        check_options(model.process, card.schema, options.generate, options.sampler, card.attributes)
        check_overlap(model, options.sampler)
        cohort = Manifest.load(checkpoint.parent / "manifest.json")
        masks = load_masks(options.masks, ImageModel(card, cohort, options.sampler, model.codec.mean.device))
        masks = edited_masks(masks, options.generate, options.screen.rules)
        return cls(
            model=model,
            card=card,
            checkpoint=digest,
            cohort=cohort,
            masks=masks,
            generate=options.generate,
            sampler=options.sampler,
            source=options.masks.source,
            max_per_host=options.masks.max_per_host,
            cache=cache,
            screen=options.screen,
            segmenter=options.segmenter,
            scoring=options.scoring,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The checkpoints that the pairs depend on."""
        own = {"checkpoint": self.checkpoint}
        return own if self.masks.checkpoint is None else own | {"mask_checkpoint": self.masks.checkpoint}

    def recipes(self) -> Recipes:
        """Load the hosts of the pairs.

        Raises:
            UserError: no training case has a label, a scan has changed since the training, or the mask generator saw a
                test scan.
        """
        labelled = [case for case in self.cohort.split("train") if case.label is not None]
        if not labelled:
            raise UserError(f"{self.cohort.name}: no training case has a label to take a mask from")
        refuse_changed_scans(self.card, case_contents(self.cohort, labelled, self.cache))
        if self.masks.seen is not None:
            tested = case_contents(self.cohort, self.cohort.split("test"), self.cache)
            self.masks.seen.refuse_test_scans("the mask generator", self.cohort, tested)
        if self.generate.box is not None:
            return self._boxed_recipes(labelled)
        card = self.card
        hosts = load_cases(self.cohort, labelled, card.preprocessing, self.cache)
        names = [attribute.name for attribute in card.attributes.attributes]
        hosts = with_quantiles(hosts, find_quantiles(names, card.schema, card.modalities))
        masks = self.masks.fitted(TrainingMasks.of(hosts, self.cache))
        if self.generate.mode != PAIRS:
            hosts = self._edited_hosts(hosts)
        if isinstance(masks, ComposedMasks | EditedMasks):
            hosts = _with_room(masks, hosts)
        checkpoint = self.checkpoint
        return Recipes(
            hosts, masks, self.generate, self.sampler, self.source, checkpoint, card.attributes, self.max_per_host
        )

    def _boxed_recipes(self, labelled: list[Case]) -> Recipes:
        """As `recipes`, for boxes of the hosts: no whole scan is brought to model space."""
        assert isinstance(self.masks, EditedMasks) and self.generate.box is not None
        refuse_boxes(self.card)
        space = self.card.preprocessing
        lesions = Lesions.gathered(own_labels(self.cohort, labelled, space), self.masks.classes)
        masks, remove = self.masks.with_lesions(lesions), self.generate.mode == REMOVE
        boxes = Boxes(self.cohort, box_space(space, self.generate.box), space.grid, lesions, remove)
        cases = labelled if remove else [*labelled, *self._unlabelled()]
        hosts = _with_room(masks, [boxes.at(case, 0) for case in cases], boxes)
        recipes = Recipes(hosts, masks, self.generate, self.sampler, self.source, self.checkpoint, self.card.attributes)
        return replace(recipes, max_per_host=self.max_per_host, boxes=boxes)

    def _unlabelled(self) -> list[Case]:
        """The training scans without a label, if they can be hosts."""
        others = [case for case in self.cohort.split("train") if case.label is None]
        if others and self.card.schema.ignore is None:
            log.warning(
                "%d training scans without a label are no hosts, because the labels have no value for unknown voxels; "
                'with "ignore": 255 beside "labels" in the manifest (and a new training) they are',
                len(others),
            )
            return []
        refuse_changed_scans(self.card, case_contents(self.cohort, others, self.cache))
        return others

    def _edited_hosts(self, labelled: list[ModelCase]) -> list[ModelCase]:
        """The hosts of edited scans: with lesions to remove, or all, those without a label included if possible."""
        if self.generate.mode == REMOVE:
            assert isinstance(self.masks, EditedMasks)
            # Not empty: a cohort without lesions is refused when the masks are fitted.
            return [host for host in labelled if np.isin(np.asarray(host.label), self.masks.classes).any()]
        others = self._unlabelled()
        unlabelled = load_cases(self.cohort, others, self.card.preprocessing, self.cache)
        return [*labelled, *map(unlabelled_host, unlabelled)]

    def show_denoising(self, recipes: Recipes, stem: Path) -> None:
        """Write `stem`.png and .gif, which show pair 0 emerging from noise in `generate.strip` frames."""
        recipe, host, mask = recipes(0)
        seen: list[tuple[float, np.ndarray]] = []
        last = sample_images(
            self.model,
            self.card.schema,
            [recipe],
            [mask],
            recipe.guidance_scale,
            lambda t, x0: seen.append((t, x0[0, 0])),
            hosts=[host],
        )
        frames = [seen[i] for i in evenly(len(seen), self.generate.strip)]
        denoising_strip([*frames, (0.0, last[0, 0])], busiest_slice(mask), stem)

    def estimate(self, recipes: Recipes, folder: Path, started: bool) -> None:
        """Log how much disk space and time the pairs need that are not finished yet.

        Args:
            recipes: result of `recipes`.
            folder: folder of the run, which need not exist.
            started: whether the files in the folder belong to this run.

        Raises:
            UserError: the disk has too little room, or nothing can be sampled with these options.
        """
        missing = self._attempts(folder).missing(self.generate.num) if started else self.generate.num
        estimate = estimate_pairs(self.model, self.card, recipes, missing, self.generate, bool(self.screen.rules))
        for line in estimate.lines(self.generate.num, folder):
            log.info("%s", line)
        estimate.refuse_full_disk(folder)

    def progress(self, folder: Path) -> str:
        """How many pairs are finished or given up, in words."""
        num = self.generate.num
        return f"{num - self._attempts(folder).missing(num)} of {num} pairs are done"

    def _attempts(self, folder: Path) -> Attempts:
        return Attempts.read(folder, self.screen.retries if self.screen.rules else 0)

    def make(self, recipes: Recipes, folder: Path) -> dict[str, Any] | None:
        """Make this process's share of the pairs; the process that finishes last writes manifest and contact sheet.

        Args:
            recipes: result of `recipes`.
            folder: folder of the run.

        Returns:
            The summary of the finished run; None if other processes are still working.
        """
        num, size = self.generate.num, self.generate.batch_size
        screening = Preparation(
            card=self.card,
            cohort=self.cohort,
            screen=self.screen,
            segmenter=self.segmenter,
            scoring=self.scoring,
            seed=self.generate.seed,
            cache=self.cache,
        ).load(folder)
        edited, generate = self.generate.mode != PAIRS, self.generate
        insertion = Insertion(self.cohort, generate.margin, generate.resample) if edited else None
        manner = Manner(recipes.record, insertion)
        generate_pairs(self.model, self.card, recipes, num, size, folder, manner, screening)
        if missing := self._attempts(folder).missing(num):
            log.info(
                "process %d of %d has made its pairs. The other processes still have %d to make; the last one writes "
                "the manifest. If one of them died, repeat the command to make the missing pairs",
                process_rank(),
                process_count(),
                missing,
            )
            return None
        result = None if screening is None else Conclusion(screening, self.card, folder, num).conclude()
        removed = () if result is None else result.removed
        pairs = Pairs.collect(self.card, folder, num, removed, self.cohort.licence)
        summary = pairs.save(folder)
        self._draw_contact_sheet(pairs, folder / "contact_sheet.png")
        write_dataset_card(self.card, pairs, self.cohort, result, folder)
        usage = Usage.read(folder, num)
        usage.log()
        return summary | {"checkpoint": self.checkpoint} | usage.to_mapping()

    def _draw_contact_sheet(self, pairs: Pairs, path: Path) -> None:
        card = self.card
        shown: Sequence[ModelCase]
        if self.generate.box is None:
            shown = load_cases(pairs.manifest, pairs.manifest.cases[:_SHOWN], card.preprocessing, self.cache)
        else:
            ends = {record["name"]: record["mask_parameters"]["where"] for record in pairs.records}
            space = box_space(card.preprocessing, self.generate.box)
            shown = [boxed(pairs.manifest, case, space, ends[case.name]) for case in pairs.manifest.cases[:_SHOWN]]
        rows = []
        for i, case in enumerate(shown):
            m = i % len(card.modalities)
            rows.append((f"pair {i}, {card.modalities[m]}", case.image[m], np.array(case.label)))
        title = f"{card.experiment}: synthetic pairs" + (" (phantoms, not patients)" if card.phantom else "")
        save_figure(contact_sheet(rows, title, card.schema.foreground, window=(-1.0, 1.0)), path)


def _with_room(masks: Masks, hosts: Sequence[ModelCase], boxes: Boxes | None = None) -> list[ModelCase]:
    kept = with_room(masks, hosts, boxes)
    if not kept:
        raise UserError("no training scan has room for a lesion (masks.lesions)", masks.remedy)
    if left_out := sorted({host.case.name for host in hosts} - {host.case.name for host in kept}):
        names = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        log.warning("%d of %d hosts are left out, because lesions rarely fit: %s", len(left_out), len(hosts), names)
    return kept
