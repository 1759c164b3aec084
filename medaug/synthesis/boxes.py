"""Boxes of scans at their own resolution: hosts of edited scans whose memory is bounded by the box.

A box is treated as a small scan of its own: it is read, resampled and inverted as a whole scan is, but with the
intensity limits of the whole scan. Of the whole scan only the voxels as stored, the label and a coarse body mask are in
memory, for one scan at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.ndimage import label as pieces_of
from torch import Tensor

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import IGNORE
from medaug.data.cases import ModelCase, read_case
from medaug.data.geometry import ModelGrid
from medaug.data.grid import Shape, orientation_of, oriented_spacing
from medaug.data.preprocessing import Preprocessing, body_box
from medaug.data.resampling import resample_label
from medaug.errors import UserError
from medaug.imaging.body import body_mask
from medaug.imaging.cases import HostImage, read_indices
from medaug.imaging.reading import read_header
from medaug.synthesis.composed import ALL_NEIGHBOURS, Lesions
from medaug.training.checkpoint import Card

_COARSE = 96  # voxels per side of the grid on which a body is looked for

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class HostBox(ModelCase):
    """A box of a scan in model space; `affine` and `dtype` are those of the whole scan.

    Attributes:
        where: the box in the whole scan, along its own axes.
        body: (X, Y, Z) bool, where the box lies in the body of the whole scan.
        first, last: the model's voxels, along R, A and S, on which the box begins and ends, if the whole scan were
            brought to the model's grid; they may lie beyond it.
        grid: the shape of that grid.
    """

    where: Slices = field(kw_only=True)
    body: NDArray[np.bool_] = field(kw_only=True)
    first: tuple[float, ...] = field(kw_only=True)
    last: tuple[float, ...] = field(kw_only=True)
    grid: Shape = field(kw_only=True)

    def place(self, stride: Sequence[int]) -> Tensor:
        """Where the box lies in the model's grid: (6,), see `medaug.diffusion.windows.place`; stride: of the codec."""
        ends = [
            2 * position / max(-(-side // step) - 1, 1) - 1
            for first, last, side, step in zip(self.first, self.last, self.grid, stride, strict=True)
            for position in (first / step, (last + 1) / step - 1)
        ]
        return torch.tensor(ends, dtype=torch.float32)

    @property
    def ends(self) -> list[list[int]]:
        """`where` as [start, stop) of each axis."""
        return [[side.start, side.stop] for side in self.where]


@dataclass(frozen=True)
class _Scan:
    """A whole scan on its own grid."""

    case: Case
    image: HostImage
    label: NDArray[np.uint8]
    limits: tuple[tuple[float, float], ...]
    body: NDArray[np.bool_]
    room: NDArray[np.bool_] | None = None
    lesions: tuple[Slices, ...] = ()


@dataclass
class Boxes:
    """Cuts boxes out of the scans of a cohort.

    Attributes:
        cohort: the cohort.
        space: preprocessing of the model; its `shape` is that of the boxes.
        grid: the grid of the model.
        lesions: the lesions of the training masks.
        remove: whether boxes lie around lesions of the scan; otherwise they lie where a new lesion can be.
    """

    cohort: Manifest
    space: Preprocessing
    grid: ModelGrid
    lesions: Lesions
    remove: bool
    _last: _Scan | None = field(default=None, repr=False)

    def at(self, case: Case, seed: int) -> HostBox:
        """A box at random around a place for a lesion, or around a lesion; moved into the scan where it crosses a face.

        The place is a voxel of the body whose class is tissue in which lesions occur. If no class says which tissue
        that is, or nobody labelled the scan, it is where a lesion lies in a training scan, in shares of the scan's
        sides. With no such place, it is the middle of the scan.

        Raises:
            UserError: the files cannot be read.
        """
        scan, rng = self._read(case), np.random.default_rng(seed)
        shape = np.array(scan.label.shape)
        centre = shape / 2
        if self.remove:
            if scan.lesions:
                box = scan.lesions[rng.integers(len(scan.lesions))]
                centre = np.array([(side.start + side.stop) / 2 for side in box])
        elif scan.room is not None and scan.room.any():
            centre = np.array(_random_voxel(scan.room, rng)) + 0.5
        elif self.lesions.centres:
            share = np.array(self.lesions.centres[rng.integers(len(self.lesions.centres))])
            centre = _to_own_axes(share, scan.image.affine) * shape
        sides = np.minimum(self._sides(scan.image.affine), shape)
        starts = np.clip(np.round(centre - sides / 2).astype(int), 0, shape - sides)
        x, y, z = (slice(int(start), int(start + side)) for start, side in zip(starts, sides, strict=True))
        return _cut(scan, (x, y, z), self.space, self.grid)

    def whole(self, case: Case) -> tuple[HostImage, NDArray[np.uint8]]:
        """The whole image of a case, and its class indices; IGNORE if it has no label."""
        scan = self._read(case)
        return scan.image, scan.label

    def _sides(self, affine: NDArray[Any]) -> NDArray[np.int_]:
        """Host voxels along each of its axes that a box covers."""
        sides = np.array(self.space.shape, float)
        if self.space.spacing is not None:
            sides *= np.array(self.space.spacing) / np.array(oriented_spacing(affine))
        return np.maximum(1, _to_own_axes(sides, affine, mirrored=False).round().astype(int))

    def _read(self, case: Case) -> _Scan:
        if self._last is None or self._last.case != case:
            self._last = None  # one scan at a time
            image, label = read_case(self.cohort, case)
            known = label is not None
            label = np.full(image.array.shape[1:], IGNORE, np.uint8) if label is None else label
            body, classes = _coarse_body(image.array), self.lesions.classes
            usable = known and self.lesions.tissue and not self.remove
            room = np.isin(label, self.lesions.tissue) & body if usable else None
            pieces = pieces_of(np.isin(label, classes), ALL_NEIGHBOURS)[0] if self.remove else None
            found = () if pieces is None else tuple(find_objects(pieces))
            self._last = _Scan(case, image, label, self._limits(image), body, room, found)
        return self._last

    def _limits(self, image: HostImage) -> tuple[tuple[float, float], ...]:
        volumes = image.array
        if self.space.crop == "body":
            volumes = np.stack([apply_orientation(volume, orientation_of(image.affine)) for volume in volumes])
            (x, xx), (y, yy), (z, zz) = body_box(volumes)
            volumes = volumes[:, x:xx, y:yy, z:zz]
        return self.space.limits(list(volumes))


def boxed(cohort: Manifest, case: Case, space: Preprocessing, ends: Sequence[Sequence[int]]) -> HostBox:
    """The box of a case with these [start, stop) along its own axes, for pictures: its place is not known.

    Raises:
        UserError: the files cannot be read.
    """
    image, label = read_case(cohort, case)
    x, y, z = (slice(start, stop) for start, stop in ends)
    label = np.full(image.array.shape[1:], IGNORE, np.uint8) if label is None else label
    body = np.ones(label.shape, bool)
    return _cut(_Scan(case, image, label, space.limits(list(image.array)), body), (x, y, z), space, space.grid)


def _cut(scan: _Scan, where: Slices, space: Preprocessing, grid: ModelGrid) -> HostBox:
    affine = np.array(scan.image.affine)
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in where]
    x, y, z = where
    image, placement = space.apply_image(scan.image.array[:, x, y, z], affine, limits=scan.limits)
    first, last = _ends_in_grid(scan, where, grid)
    inside = space.apply_label(scan.body[where].astype(np.uint8), placement)
    return HostBox(
        case=scan.case,
        image=image,
        label=space.apply_label(scan.label[where], placement),
        affine=scan.image.affine,
        dtype=scan.image.dtype,
        placement=placement,
        where=where,
        body=inside.astype(bool),
        first=first,
        last=last,
        grid=grid.shape,
    )


def _ends_in_grid(scan: _Scan, where: Slices, grid: ModelGrid) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The first and the last voxel of the model's grid, along R, A and S, that a box covers; see `HostBox`."""
    whole = grid.locate(scan.label.shape, scan.image.affine)
    first, last = [0.0] * 3, [0.0] * 3
    for (axis, flip), part, side in zip(whole.orientation, where, whole.shape, strict=True):
        start, stop = (part.start, part.stop) if flip > 0 else (side - part.stop, side - part.start)
        new, model = whole.resampled[axis], grid.shape[axis]
        offset = (model - new) // 2 if model >= new else -((new - model) // 2)
        first[axis], last[axis] = start * new / side + offset, stop * new / side - 1 + offset
    return tuple(first), tuple(last)


def own_labels(
    cohort: Manifest, cases: Sequence[Case], space: Preprocessing
) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Label maps of whole scans at the model's voxel size, each with its subject; only labels are read.

    Raises:
        UserError: a file cannot be read.
    """
    for case in cases:
        header = read_header(cohort.image_paths(case)[0])
        label = read_indices(cohort, case, header)
        if label is not None:
            geometry = space.grid.locate(header.shape, header.affine)
            yield resample_label(geometry.cropped(label), geometry.resampled), case.subject


def refuse_boxes(card: Card) -> None:
    """Refuse a model that cannot generate boxes.

    Raises:
        UserError: scans are divided by a bias field, or cropped to the body while the network reads positions.
    """
    positions = card.options["network"].get("coordinates") or card.options.get("data", {}).get("patch")
    if positions and card.preprocessing.crop == "body":
        raise UserError(
            "generate.box: the model was trained with data.crop=body, and the position of a box in the body is unknown",
            "train without it, or leave generate.box out",
        )
    if card.preprocessing.bias_correction:
        raise UserError(
            "generate.box: the model was trained with data.bias_correction, and the bias field of a box is unknown",
            "train without it, or leave generate.box out",
        )


def box_space(space: Preprocessing, sides: Sequence[int]) -> Preprocessing:
    """The preprocessing of boxes with these sides, for a model with this preprocessing."""
    x, y, z = sides
    shape: Shape = (x, y, z)
    return replace(space, shape=shape)


def _random_voxel(room: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, ...]:
    """One of the voxels of a volume (X, Y, Z) that are true, at random; without a list of all of them."""
    counts = room.sum((1, 2))
    number = int(rng.integers(counts.sum()))
    x = int(np.searchsorted(counts.cumsum(), number, side="right"))
    y, z = np.argwhere(room[x])[number - int(counts[:x].sum())]
    return x, int(y), int(z)


def _to_own_axes(values: NDArray[Any], affine: NDArray[Any], mirrored: bool = True) -> NDArray[Any]:
    """Numbers along R, A, S by the file's axes; with `mirrored`, shares x of a side become 1 - x on flipped axes."""
    found = [
        1 - values[axis] if mirrored and flip < 0 else values[axis] for axis, flip in orientation_of(affine).tolist()
    ]
    return np.array(found)


def _coarse_body(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The body in any modality of (M, X, Y, Z), found on a coarser grid: (X, Y, Z)."""
    steps = [max(1, -(-side // _COARSE)) for side in image.shape[1:]]
    x, y, z = (slice(None, None, step) for step in steps)
    found = np.any([body_mask(volume[x, y, z]) for volume in image], axis=0)
    for axis, step in enumerate(steps):
        found = found.repeat(step, axis)
    return found[tuple(slice(side) for side in image.shape[1:])]
