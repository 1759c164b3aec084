"""Mask source "population": shapes drawn from the distribution of the training masks' shapes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medaug.cohort.schema import IGNORE, foreground
from medaug.data.cache import locked
from medaug.errors import UserError
from medaug.files import atomic_write, file_sha256, write_json
from medaug.inputs import read_json
from medaug.options import MasksOptions
from medaug.synthesis import shapes
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource, Reason, TrainingMasks, check_mirror
from medaug.synthesis.plausible import Limits
from medaug.synthesis.shapes import ShapeModel


class PopulationMasks(Masks):
    """Masks drawn from a model of the training masks' shapes, each with the pose of its host's mask.

    Attributes:
        learned: the shape model and the limits of what is plausible; None before `fitted`.
    """

    remedy = "deviate less from the mean shape (masks.spread), or use masks=deformed"
    inside_scan = True

    def __init__(
        self,
        options: MasksOptions,
        learned: tuple[ShapeModel, Limits] | None = None,
        subjects: frozenset[str] = frozenset(),
    ) -> None:
        self.options, self.learned, self.subjects = options, learned, subjects
        self.parameters = {"spread": options.spread, "volume_range": list(options.volume_range)}
        if options.volume_scale is not None:
            self.parameters["volume_scale"] = list(options.volume_scale)
        if options.mirror:
            self.parameters["mirror"] = True

    def fitted(self, training: TrainingMasks) -> PopulationMasks:
        """Learn the shapes, or read them from the cache.

        Raises:
            UserError: too few training masks have foreground.
        """
        labels = [label for label in training.labels if foreground(label).any()]
        if len(labels) < shapes.FEWEST:
            raise UserError(
                f"masks=population: {len(labels)} training masks are too few to learn shapes from (at least "
                f"{shapes.FEWEST} are needed)",
                "use masks=deformed",
            )
        return PopulationMasks(self.options, _learned(labels, training), frozenset(training.subjects))

    def make(self, label: Label, seed: int) -> Label:
        """Draw a mask, see `ShapeModel.draw`. Ignored voxels of the label stay ignored; an empty label stays empty."""
        assert self.learned is not None
        mask = np.zeros_like(label)
        if foreground(label).any():
            rng = np.random.default_rng(seed)
            mirrored = self.options.mirror and bool(rng.random() < 0.5)
            low, high = self.options.volume_range
            factors = self.options.volume_scale
            mask = self.learned[0].draw(label, rng, self.options.spread, (low, high), mirrored, factors)
        mask[(mask == 0) & (label == IGNORE)] = IGNORE
        return mask

    def rejection(self, mask: Label, label: Label) -> Reason | None:
        """See `Limits.rejection`, with volumes scaled as asked; an empty mask is plausible if its host's is empty."""
        assert self.learned is not None
        return (
            self.learned[1].scaled(self.options.volume_scale or (1, 1)).rejection(mask)
            if foreground(label).any()
            else None
        )


def _load(options: MasksOptions, model: ImageModel | None) -> PopulationMasks:
    check_mirror(options, model)
    return PopulationMasks(options)


POPULATION = MaskSource(_load)


@dataclass(frozen=True)
class _Entry:
    """A cache entry with what was learned from the masks: `shapes-KEY.npz`, and then `shapes-KEY.json`."""

    stem: Path

    def read(self) -> tuple[ShapeModel, Limits] | None:
        """Read the entry; None if it is absent, incomplete or damaged."""
        try:
            about = read_json(self.stem.with_suffix(".json"))
            if file_sha256(self.stem.with_suffix(".npz")) != about["sha256"]:
                return None
            return ShapeModel.load(self.stem.with_suffix(".npz")), Limits(**about["limits"])
        except (UserError, OSError, LookupError, TypeError, ValueError):
            return None

    def write(self, model: ShapeModel, limits: Limits, owners: Any) -> None:
        with atomic_write(self.stem.with_suffix(".npz")) as temporary:
            with temporary.open("wb") as file:
                model.save(file)
            digest = file_sha256(temporary)
        about = {"limits": limits.to_dict(), "owners": list(owners), "sha256": digest}
        write_json(self.stem.with_suffix(".json"), about)


def _learned(labels: list[Label], training: TrainingMasks) -> tuple[ShapeModel, Limits]:
    """Learn the shapes, once for all processes that share the cache."""
    if training.cache is None:
        return ShapeModel.fit(labels), Limits.fit(labels)
    identity = [shapes.FORMAT, sorted(map(shapes.digest, labels))]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    entry = _Entry(training.cache / f"shapes-{key}")
    with locked(entry.stem, wait=True):
        if (known := entry.read()) is None:
            known = ShapeModel.fit(labels), Limits.fit(labels)
            entry.write(*known, training.owners)
    return known
