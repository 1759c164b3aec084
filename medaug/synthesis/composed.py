"""Mask source "composed": a lesion of one training mask, rotated and scaled, placed into another one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, binary_dilation, distance_transform_edt, find_objects
from scipy.ndimage import label as pieces_of

from medaug.cohort.schema import IGNORE, foreground
from medaug.data.transforms import random_affine
from medaug.errors import UserError
from medaug.options import MasksOptions
from medaug.synthesis.masks import ImageModel, Label, Masks, MaskSource, Reason, TrainingMasks, check_mirror

_PLACES = 50  # places tried for a lesion before the mask is given up
_USUAL = 0.05  # a class with at least this share of the voxels around lesions is tissue in which lesions occur
_OVERLAP = 0.75  # share of a lesion that must lie where lesions occur, if no class says which tissue that is
ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Lesions:
    """Lesions of training masks, and where they occur.

    Attributes:
        classes: class indices that make up a lesion.
        crops: (x, y, z) class indices of each lesion in its bounding box, 0 around it.
        tissue: class indices, background included, in which lesions lie; empty if the masks have no class but lesions.
        places: (X, Y, Z) voxels that lie in a lesion of some training mask; None if the masks have grids of their own,
            so that lesions may lie anywhere.
        centres: the centre of each lesion along R, A, S, in shares of the sides of its mask.
        subjects: the subjects whose masks have the lesions.
    """

    classes: tuple[int, ...]
    crops: tuple[Label, ...]
    tissue: tuple[int, ...]
    places: NDArray[np.bool_] | None
    centres: tuple[tuple[float, ...], ...]
    subjects: frozenset[str]

    @classmethod
    def of(cls, training: TrainingMasks, classes: tuple[int, ...]) -> Lesions:
        """Find the lesions: pieces (26-connected) of these classes together.

        Raises:
            UserError: no training mask has one.
        """
        owners = training.owners or [{"subject": ""}] * len(training.labels)
        places = np.zeros(training.labels[0].shape, bool)
        for mask in training.labels:
            places |= np.isin(mask, classes)
        named = zip(training.labels, (owner["subject"] for owner in owners), strict=True)
        return cls.gathered(named, classes, places)

    @classmethod
    def gathered(
        cls,
        masks: Iterable[tuple[Label, str]],
        classes: tuple[int, ...],
        places: NDArray[np.bool_] | None = None,
    ) -> Lesions:
        """Find the lesions of masks, each with its subject, which are read once and one after the other.

        Raises:
            UserError: no mask has one.
        """
        crops: list[Label] = []
        centres: list[tuple[float, ...]] = []
        subjects = set()
        around = np.zeros(256, int)
        for mask, subject in masks:
            lesion = np.isin(mask, classes)
            found, number = pieces_of(lesion, ALL_NEIGHBOURS)
            if not number:
                continue
            subjects.add(subject)
            around += np.bincount(mask[binary_dilation(lesion, ALL_NEIGHBOURS) & ~lesion], minlength=256)
            boxes = find_objects(found)
            crops += [np.where(found[box] == i, mask[box], 0) for i, box in enumerate(boxes, start=1)]
            middles = ([(side.start + side.stop) / 2 for side in box] for box in boxes)
            centres += [tuple((np.array(middle) / mask.shape).tolist()) for middle in middles]
        if not crops:
            raise UserError("masks=composed: no training mask has a lesion (masks.lesions)", "name other classes")
        around[IGNORE] = 0
        others = [value for value in np.unique(around.nonzero()) if value not in (0, IGNORE)]
        usual = np.flatnonzero(around >= _USUAL * max(1, around.sum())).tolist()
        tissue = tuple(usual) if others else ()
        return cls(classes, tuple(crops), tissue, places, tuple(centres), frozenset(subjects))

    def without(self, label: Label) -> Label:
        """The mask with its own lesions replaced by the nearest other class."""
        lesion = np.isin(label, self.classes)
        if not lesion.any() or lesion.all():
            return np.where(lesion, 0, label).astype(np.uint8)
        nearest = distance_transform_edt(lesion, return_distances=False, return_indices=True)
        return label[tuple(nearest)]

    def room(self, label: Label) -> tuple[NDArray[np.bool_], float]:
        """The voxels of a mask where a new lesion may lie, and the share of its voxels that must lie there.

        Ignored voxels may be any tissue, so there a lesion may lie only where a training mask has one.
        """
        places = np.ones(label.shape, bool) if self.places is None else self.places
        tissue = np.isin(label, self.tissue) if self.tissue else places & (label == 0)
        allowed = np.where(label == IGNORE, places, tissue)
        return allowed, 1.0 if self.tissue and not (label == IGNORE).all() else _OVERLAP


class ComposedMasks(Masks):
    """Masks of hosts, each with a lesion of a training mask placed in it.

    Attributes:
        classes: class indices that make up a lesion.
        lesions: the lesions of the training masks; None before `fitted`.
        edge: width in voxels of the shell of the grid that stays free of new lesions.
    """

    remedy = "scale lesions less (masks.scaling), or use masks=deformed"
    inside_scan = True
    inside_body = True

    def __init__(
        self, options: MasksOptions, classes: tuple[int, ...], lesions: Lesions | None = None, edge: int = 0
    ) -> None:
        self.options, self.classes, self.lesions, self.edge = options, classes, lesions, edge
        self.subjects = frozenset() if lesions is None else lesions.subjects
        names = ("lesions", "rotation", "scaling", "replace", *(["mirror"] if options.mirror else []))
        self.parameters = {name: getattr(options, name) for name in names}

    def fitted(self, training: TrainingMasks) -> ComposedMasks:
        """See `Lesions.of`."""
        return ComposedMasks(self.options, self.classes, Lesions.of(training, self.classes), self.edge)

    def make(self, label: Label, seed: int) -> Label:
        """Place one lesion, chosen at random, as a whole where the host has room; place none if no room is found."""
        assert self.lesions is not None
        rng = np.random.default_rng(seed)
        mask = np.array(self.lesions.without(label) if self.options.replace else label)
        lesion = self._turned(self.lesions.crops[rng.integers(len(self.lesions.crops))], rng)
        room, share = self.lesions.room(mask)
        where, candidates = np.argwhere(lesion), np.argwhere(room)
        taken = np.isin(mask, self.classes)
        if not len(where) or not len(candidates):
            return mask
        middle = where.mean(axis=0).round().astype(int)
        for centre in candidates[rng.integers(len(candidates), size=_PLACES)]:
            voxels = where + centre - middle
            inside = (voxels >= self.edge).all() and (voxels < np.array(mask.shape) - self.edge).all()
            if inside and room[at := tuple(voxels.T)].mean() >= share and not taken[at].any():
                mask[at] = lesion[tuple(where.T)]
                break
        return mask

    def rejection(self, mask: Label, label: Label) -> Reason | None:
        """A mask is rejected if no place was found for the lesion."""
        own = 0 if self.options.replace else int(np.isin(label, self.classes).sum())
        if int(np.isin(mask, self.classes).sum()) <= own:
            return Reason("the host has no room for the lesion", "no room")
        return None

    def _turned(self, crop: Label, rng: np.random.Generator) -> Label:
        """The lesion, rotated and scaled about its centre at random; the class with the largest share wins."""
        matrix = random_affine(rng, self.options.rotation, self.options.scaling)
        if self.options.mirror and rng.random() < 0.5:
            matrix = np.diag([-1.0, 1.0, 1.0]) @ matrix
        farthest = np.linalg.norm(crop.shape) * max(1.0, float(np.linalg.norm(np.linalg.inv(matrix), 2)))
        # Pad both sides equally, so that the crop's own voxels stay on the grid if nothing is rotated.
        shape = tuple(side + 2 * int(np.ceil((farthest - side) / 2 + 1)) for side in crop.shape)
        offset = (np.array(crop.shape) - 1) / 2 - matrix @ ((np.array(shape) - 1) / 2)
        values = np.union1d(0, crop)
        sampled = partial(affine_transform, matrix=matrix, offset=offset, output_shape=shape, order=1)
        shares = [sampled((crop == v).astype(np.float32), mode="grid-constant", cval=v == 0) for v in values]
        turned = values[np.argmax(shares, axis=0)].astype(np.uint8)
        return turned[tuple(slice(a, b + 1) for a, b in _box(turned))] if foreground(turned).any() else turned[:0]


def _box(mask: Label) -> list[tuple[int, int]]:
    where = np.argwhere(mask)
    return list(zip(where.min(axis=0).tolist(), where.max(axis=0).tolist(), strict=True))


def _load(options: MasksOptions, model: ImageModel | None) -> ComposedMasks:
    if model is None:
        raise UserError(
            "masks=composed: while a model trains, its samples are scored on deformed or real masks",
            "leave it out, or set trainer.score_every=0",
        )
    names = model.card.schema.names
    if not options.lesions:
        raise UserError("masks=composed: needs masks.lesions, the classes that make up a lesion")
    if unknown := [name for name in options.lesions if name not in model.card.schema.foreground]:
        raise UserError(
            f"masks.lesions: {', '.join(unknown)} is not a class of the masks",
            f"choose from {', '.join(model.card.schema.foreground)}",
        )
    check_mirror(options, model)
    return ComposedMasks(options, tuple(names.index(name) for name in options.lesions))


COMPOSED = MaskSource(_load)
