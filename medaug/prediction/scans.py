"""Reads real scans as a model's input; the real counterpart of its output is read separately, for scoring only."""

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
    """The modalities of one case that a model needs as input.

    Attributes:
        case: the case in the manifest.
        inputs: indices of the input modalities among the model's modalities.
        host: (len(inputs), X, Y, Z) float32, on the scan's grid in its units.
        affine: affine of that grid, (4, 4) mm.
        image: (M, *model grid) float32 in [-1, 1]; modalities that are not input are 0.
        placement: how to return to the scan's grid, for the input modalities.
        label: (*model grid) uint8 class indices; None if the label is not an input.
    """

    case: Case
    inputs: tuple[int, ...]
    host: NDArray[np.float32]
    affine: NDArray[np.float64]
    image: NDArray[np.float32]
    placement: Placement
    label: NDArray[np.uint8] | None = None

    @property
    def grid(self) -> Header:
        """Shape and affine of the scan."""
        return Volume(self.host[0], self.affine, self.host.dtype).header

    def placement_of(self, generated: Sequence[int], card: Card) -> Placement:
        """How to return generated modalities to the scan's grid.

        Their intensities come out in the scan's units if the modalities are also inputs, otherwise in the cohort's.
        """
        if set(generated) <= set(self.inputs):
            places = [self.inputs.index(m) for m in generated]
            bias = self.placement.bias
            return replace(
                self.placement,
                low=tuple(self.placement.low[i] for i in places),
                high=tuple(self.placement.high[i] for i in places),
                bias=None if bias is None else tuple(bias[i] for i in places),
            )
        low, high = zip(*(card.scale[m] for m in generated), strict=True)
        return replace(self.placement, low=low, high=high, bias=None)

    def field_of_view(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Crop a volume (..., *model grid) to the part that the scan covers, without padding."""
        for axis, (scan, model) in enumerate(zip(self.placement.resampled, volume.shape[-3:], strict=True), start=-3):
            start = max(0, (model - scan) // 2)
            volume = np.take(volume, range(start, start + min(scan, model)), axis)
        return volume


def read_scan(
    manifest: Manifest, case: Case, card: Card, inputs: tuple[int, ...], label: bool = False, refine: int = 1
) -> Scan:
    """Read from a case what the model takes as input, and nothing else.

    Args:
        manifest: manifest of the case.
        case: the scan to read.
        card: card of the model.
        inputs: indices of the model's modalities to read.
        label: whether to read the label map too.
        refine: number of voxels per axis into which each voxel is first split, by trilinear interpolation, as in the
            training of super-resolution.

    Raises:
        UserError: as for `read_modalities`; or the label map does not match the images.
    """
    image = read_modalities(manifest, case, [card.modalities[m] for m in inputs])
    host, affine = image.array, image.affine
    indices = read_indices(manifest, case, image.grid) if label else None
    if refine > 1:
        host = interpolate(torch.from_numpy(host)[None], scale_factor=refine, mode="trilinear")[0].numpy()
        finer = np.diag([1 / refine] * 3 + [1.0])
        finer[:3, 3] = (1 / refine - 1) / 2  # the centre of the first new voxel is not that of the old one
        affine = affine @ finer
    placed_image, placement = card.preprocessing.apply_image(host, affine)
    whole = np.zeros((len(card.modalities), *placed_image.shape[1:]), np.float32)
    whole[list(inputs)] = placed_image
    placed = None if indices is None else card.preprocessing.apply_label(indices, placement)
    return Scan(case, inputs, host, affine, whole, placement, placed)


def read_truth(manifest: Manifest, scan: Scan, card: Card, generated: Sequence[int]) -> NDArray[np.float32]:
    """Read the real images of the generated modalities, each scaled by its own intensities.

    Returns:
        (len(generated), *model grid) in [-1, 1].

    Raises:
        UserError: as for `read_modalities`; or the images are on another grid than the scan.
    """
    host = read_modalities(manifest, scan.case, [card.modalities[m] for m in generated])
    if host.array.shape[1:] != scan.host.shape[1:] or not np.allclose(host.affine, scan.affine, atol=1e-3):
        names = ", ".join(card.modalities[m] for m in generated)
        raise UserError(f"{scan.case.name}: {names} is on another grid than the model's inputs", "resample to one grid")
    return card.preprocessing.apply_image(host.array, host.affine, scan.placement.box)[0]
