"""Lesions put into real scans, or removed from them: only a region of the host is generated.

The region is sampled while the rest of the host is known (`medaug.diffusion.inpainting`; Lugmayr et al. 2022, RePaint;
Wang et al. 2023, DDNM), resampled to the host's grid and blended into the host's own voxels. All others are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as pieces_of

from medaug.cohort.manifest import Manifest
from medaug.cohort.schema import IGNORE
from medaug.data.cases import ModelCase, read_case
from medaug.diffusion.inpainting import Inpainting
from medaug.errors import UserError
from medaug.imaging.volume import as_stored
from medaug.options import GenerateOptions
from medaug.synthesis.boxes import HostBox, box_space
from medaug.synthesis.composed import ALL_NEIGHBOURS, ComposedMasks, Lesions
from medaug.synthesis.masks import Label, Masks, Reason, TrainingMasks
from medaug.training.checkpoint import Card

PAIRS, INSERT, REMOVE = "pairs", "insert", "remove"
_COPIES = ("near_copies", "duplicates")  # these rules reject copies, and most of an edited scan is a copy of its host


class EditedMasks(Masks):
    """The host's own mask with one more lesion, or without its lesions.

    Attributes:
        composed: places the lesions.
        options: mode, margin, resample and box.
        classes: class indices that make up a lesion.
    """

    inside_scan = True
    inside_body = True
    remedy = "scale lesions less (masks.scaling)"

    def __init__(self, composed: ComposedMasks, options: GenerateOptions) -> None:
        self.composed, self.options, self.subjects = composed, options, composed.subjects
        self.classes = composed.classes
        edit = {"mode": options.mode, "margin": options.margin, "resample": options.resample}
        self.parameters = {**composed.parameters, **edit, **({"box": options.box} if options.box else {})}

    def fitted(self, training: TrainingMasks) -> EditedMasks:
        """See `ComposedMasks.fitted`."""
        return EditedMasks(self.composed.fitted(training), self.options)

    def with_lesions(self, lesions: Lesions) -> EditedMasks:
        """As `fitted`, for lesions that have been gathered already."""
        composed = self.composed
        return EditedMasks(ComposedMasks(composed.options, composed.classes, lesions, composed.edge), self.options)

    def make(self, label: Label, seed: int) -> Label:
        """Insert a lesion at random, or replace the lesions by the nearest other class."""
        if self.options.mode == INSERT:
            return self.composed.make(label, seed)
        assert self.composed.lesions is not None
        without = self.composed.lesions.without(label)
        if self.options.box is None:
            return without
        # A lesion that reaches into the shell of a box may be cut by it.
        lesions, _ = pieces_of(np.isin(label, self.classes), ALL_NEIGHBOURS)
        cut = np.isin(lesions, np.unique(lesions[in_shell(label.shape, self.options.margin + 1)]))
        return np.where(cut, label, without)

    def rejection(self, mask: Label, label: Label) -> Reason | None:
        """See `ComposedMasks.rejection`; if lesions are removed, a mask is rejected if it removes none."""
        if self.options.mode == INSERT:
            return self.composed.rejection(mask, label)
        return Reason("the lesion does not fit into the box", "no room") if np.array_equal(mask, label) else None


def edited_masks(masks: Masks, options: GenerateOptions, rules: Sequence[str]) -> Masks:
    """The mask source for `generate.mode`; the source itself if whole pairs are made.

    Args:
        masks: the chosen mask source.
        options: mode, margin and resample.
        rules: chosen screening rules.

    Raises:
        UserError: the mode needs another source, or excludes a rule.
    """
    if options.mode == PAIRS:
        return masks
    if not isinstance(masks, ComposedMasks):
        raise UserError(f"mode={options.mode}: needs masks=composed", "set it, and masks.lesions")
    if wrong := [rule for rule in rules if rule in _COPIES]:
        raise UserError(
            f"mode={options.mode}: screen.rules has {', '.join(wrong)}, which rejects copies of training scans, and "
            "edited scans are such copies",
            "leave it out, as in screen.rules=[integrity,faithfulness]",
        )
    if options.box is not None and rules:
        raise UserError(
            "generate.box: the screening rules judge whole scans, not boxes",
            "set screen.rules=[], or leave generate.box out",
        )
    edge = 0 if options.box is None else options.margin + 1
    return EditedMasks(ComposedMasks(replace(masks.options, replace=False), masks.classes, edge=edge), options)


def in_shell(shape: Sequence[int], width: int) -> NDArray[np.bool_]:
    """The voxels of a grid within this many voxels of its faces."""
    shell = np.ones(tuple(shape), bool)
    shell[tuple(slice(width, max(width, side - width)) for side in shape)] = False
    return shell


def unlabelled_host(host: ModelCase) -> ModelCase:
    """The host with a label map of IGNORE alone: voxels that nobody labelled are unknown, not background."""
    return replace(host, label=np.full(host.image.shape[1:], IGNORE, np.uint8))


@dataclass(frozen=True)
class Insertion:
    """Edits hosts where a mask differs from the host's own.

    Attributes:
        cohort: the cohort of the hosts.
        margin: width of the band around the changed voxels in which host and sample are blended, in voxels of the
            model's grid.
        resample: how many times each sampling step is repeated, see `Inpainting`.
    """

    cohort: Manifest
    margin: int
    resample: int

    def inpainting(
        self, hosts: Sequence[ModelCase], masks: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> Inpainting:
        """The known part of each host and the region to sample, on the model's grid."""
        regions = np.stack([self._weight(host, mask) > 0 for host, mask in zip(hosts, masks, strict=True)])
        known = np.stack([np.asarray(host.image) for host in hosts])
        return Inpainting(
            torch.from_numpy(known).to(device), torch.from_numpy(regions)[:, None].to(device), self.resample
        )

    def _weight(self, host: ModelCase, mask: NDArray[np.uint8]) -> NDArray[np.float64]:
        """1 where the mask differs from the host's, falling to 0 beyond the margin and outside the scan."""
        distance = distance_transform_edt(mask == np.asarray(host.label))
        weight = np.zeros(mask.shape)
        weight[host.field_of_view] = np.clip(1 - distance / (self.margin + 1), 0, 1)[host.field_of_view]
        return weight

    def on_host_grid(
        self, card: Card, host: ModelCase, mask: NDArray[np.uint8], image: NDArray[np.float32]
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """The edited scan and its label, on the host's grid.

        The sample is shifted by a constant per modality, so that its mean in the outer half of the band is that of the
        host. Voxels beyond the band are the host's own.

        Arguments and results are those of `medaug.synthesis.generation.on_host_grid`, which makes whole pairs.

        Raises:
            UserError: the host's files cannot be read.
        """
        real, own = read_case(self.cohort, host.case)
        where = host.where if isinstance(host, HostBox) else (slice(None),) * 3
        space, weight = box_space(card.preprocessing, mask.shape), self._weight(host, mask)
        within = space.invert_label((weight > 0).astype(np.uint8), host.placement).astype(bool)
        share = np.where(within, space.grid.restore(weight, host.placement, 0.0).clip(0, 1), 0.0)
        ring = within & (share < 0.5)
        volumes = real.array.astype(real.dtype)
        made_volumes = space.invert_image(image, host.placement)
        for volume, before, made in zip(volumes, real.array[:, *where], made_volumes, strict=True):
            shift = float((before - made)[ring].mean()) if ring.any() else 0.0
            blended = before + share * (made + shift - before)
            volume[where][within] = as_stored(blended, real.dtype)[within]
        changed = space.invert_label((mask != host.label).astype(np.uint8), host.placement).astype(bool)
        label = np.full(real.array.shape[1:], IGNORE, np.uint8) if own is None else own.astype(np.uint8)
        label[where][changed] = space.invert_label(mask, host.placement)[changed]
        return volumes, card.schema.to_values(label)
