"""Reads real scans as input of a model. The real version of its output is read separately, only for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from medaug.cohort.manifest import Case, Manifest
from medaug.data.preprocessing import Placement
from medaug.errors import UserError
from medaug.imaging.cases import read_indices, read_modalities
from medaug.imaging.volume import Header, Volume
from medaug.training.checkpoint import Card


@dataclass(frozen=True)
class Scan:
    """The modalities of one case that are input of a model.

    Attributes:
        case: the case in the manifest.
        told: indices of the model's modalities that are input.
        host: (len(told), X, Y, Z) float32, on the scan's grid in its units.
        affine: affine of that grid, (4, 4) mm.
        image: (M, *model grid) float32 in [-1, 1]; modalities that are not input are 0.
        placement: how to return to the scan's grid, for the input modalities.
        label: (*model grid) uint8 class indices; None if the label is not input of the model.
    """

    case: Case
    told: tuple[int, ...]
    host: NDArray[np.float32]
    affine: NDArray[np.float64]
    image: NDArray[np.float32]
    placement: Placement
    label: NDArray[np.uint8] | None = None

    @property
    def grid(self) -> Header:
        """Shape and affine of the scan."""
        return Volume(self.host[0], self.affine, self.host.dtype).header

    def placement_of(self, drawn: Sequence[int], card: Card) -> Placement:
        """How to return generated modalities to the scan's grid: in the scan's units, or the cohort's if not input."""
        if set(drawn) <= set(self.told):
            places = [self.told.index(m) for m in drawn]
            bias = self.placement.bias
            return replace(
                self.placement,
                low=tuple(self.placement.low[i] for i in places),
                high=tuple(self.placement.high[i] for i in places),
                bias=None if bias is None else tuple(bias[i] for i in places),
            )
        low, high = zip(*(card.scale[m] for m in drawn), strict=True)
        return replace(self.placement, low=low, high=high, bias=None)

    def field_of_view(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Crop a volume (..., *model grid) to the part that the scan covers, without padding."""
        for axis, (scan, model) in enumerate(zip(self.placement.resampled, volume.shape[-3:], strict=True), start=-3):
            start = max(0, (model - scan) // 2)
            volume = np.take(volume, range(start, start + min(scan, model)), axis)
        return volume


def read_scan(
    manifest: Manifest, case: Case, card: Card, told: tuple[int, ...], label: bool = False, refine: int = 1
) -> Scan:
    """Read a model's input from a case, and nothing else.

    Args:
        manifest: manifest of the case.
        case: a scan.
        card: card of the model.
        told: indices of the model's modalities to read.
        label: whether the label map is input of the model.
        refine: first split each voxel into this many along each axis, trilinearly, as in training of super-resolution.

    Raises:
        UserError: as `read_images`; or the label does not fit.
    """
    image = read_modalities(manifest, case, [card.modalities[m] for m in told])
    host, affine = image.array, image.affine
    indices = read_indices(manifest, case, image.grid) if label else None
    if refine > 1:
        host = interpolate(torch.from_numpy(host)[None], scale_factor=refine, mode="trilinear")[0].numpy()
        finer = np.diag([1 / refine] * 3 + [1.0])
        finer[:3, 3] = (1 / refine - 1) / 2  # the first of the new voxels lies off the old one's centre
        affine = affine @ finer
    placed_image, placement = card.preprocessing.apply_image(host, affine)
    whole = np.zeros((len(card.modalities), *placed_image.shape[1:]), np.float32)
    whole[list(told)] = placed_image
    placed = None if indices is None else card.preprocessing.apply_label(indices, placement)
    return Scan(case, told, host, affine, whole, placement, placed)


def read_truth(manifest: Manifest, scan: Scan, card: Card, drawn: Sequence[int]) -> NDArray[np.float32]:
    """The real modalities that were drawn, (len(drawn), *model grid) in [-1, 1], each by its own intensities."""
    host = read_modalities(manifest, scan.case, [card.modalities[m] for m in drawn])
    if host.array.shape[1:] != scan.host.shape[1:] or not np.allclose(host.affine, scan.affine, atol=1e-3):
        raise UserError(f"{scan.case.name}: what is drawn lies on another grid than the rest", "resample to one grid")
    return card.preprocessing.apply_image(host.array, host.affine, scan.placement.box)[0]
