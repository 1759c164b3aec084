"""Invertible preprocessing: from a scan's own grid and units (the host's) to model space and back.

Model space: RAS orientation, one grid for the whole cohort, images in [-1, 1] with -1 as background, labels as
contiguous class indices. `Preprocessing` is fitted on the training split, stored in the checkpoint, and inverted when
images are written.

The steps, in order: orientation, crop to the body, bias field, intensity limits, resampling, scaling to [-1, 1], crop
and pad about the centre to the model's grid. Geometry (`medaug.data.geometry`) is separate from intensity: a volume
without intensities, such as a label or an entropy, needs only the geometry (`Preprocessing.grid`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from medaug.data.geometry import Box, Geometry, ModelGrid
from medaug.data.grid import Shape, Spacing, fit_grid, orientation_of, oriented_spacing
from medaug.imaging.bias import bias_field, estimate_bias
from medaug.imaging.body import body_mask, bounding_box
from medaug.imaging.intensity import Intensity, scale
from medaug.options import DataOptions

BACKGROUND = -1.0
CROP_MARGIN = 3  # voxels of air that stay around the body


@dataclass(frozen=True)
class Placement(Geometry):
    """The geometry and intensity scale of one preprocessed case; enough to undo both.

    Attributes:
        low, high: the intensities that became -1 and 1, per modality, in the host's units (after division by the bias
            field).
        bias: per modality the logarithm of the bias field on a coarse lattice (A, B, C), as nested tuples; None: none.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    bias: tuple[Any, ...] | None = None

    def bias_field(self, modality: int) -> NDArray[np.float64] | None:
        """The bias field of a modality on the grid of `kept`; None without bias correction."""
        if self.bias is None:
            return None
        return bias_field(np.array(self.bias[modality]), [stop - start for start, stop in self.kept])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Placement:
        """The inverse of `to_dict`; tuples may have become lists in JSON."""
        return cls(**{key: _tuples(value) for key, value in values.items()})


@dataclass(frozen=True)
class Preprocessing:
    """The model's grid and intensity scale for one cohort.

    Attributes:
        shape: the model's grid, voxels along R, A, S.
        spacing: voxel size in mm that scans are resampled to; None keeps each scan's own voxel size.
        percentiles, intensity, window, zscore_clip: which intensities become -1 and 1, see `Intensity`; computed per
            volume from the host voxels that the crop keeps. Intensities outside are clipped.
        crop: "body" removes everything more than three voxels outside the body (in any modality); "none" keeps all.
        bias_correction: divide by N4's estimate of the bias field; the inverse multiplies by it, so that a written
            pair has its host's bias field again.
    """

    shape: Shape
    spacing: Spacing | None
    percentiles: tuple[float, float] = (0.5, 99.5)
    intensity: str = "percentile"
    window: tuple[float, float] | None = None
    zscore_clip: float = 4.0
    crop: str = "none"
    bias_correction: bool = False

    @property
    def grid(self) -> ModelGrid:
        """The geometry alone."""
        return ModelGrid(self.shape, self.spacing)

    def apply_image(
        self,
        image: NDArray[Any],
        affine: NDArray[Any],
        box: Box | None = None,
        limits: Sequence[tuple[float, float]] | None = None,
    ) -> tuple[NDArray[np.float32], Placement]:
        """Bring an image (M, X, Y, Z) in host units into model space: (M, *shape), float32 in [-1, 1].

        `box` replaces the crop to the body, so that an image can be placed where another one was. `limits` are the
        intensities of each modality that become -1 and 1, for a part of a scan, which is then not cropped; None: see
        `limits`.
        """
        if box is None and limits is None and self.crop == "body":
            box = body_box(np.stack([apply_orientation(volume, orientation_of(affine)) for volume in image]))
        geometry = self.grid.locate(image.shape[1:], affine, box)
        volumes = [geometry.cropped(volume) for volume in image]
        spacing = oriented_spacing(affine)
        lattices = [estimate_bias(volume, spacing) for volume in volumes] if self.bias_correction else []
        if lattices:
            volumes = [v / bias_field(lattice, v.shape) for v, lattice in zip(volumes, lattices, strict=True)]
        limits = self.limits(volumes) if limits is None else limits
        placement = Placement(
            **vars(geometry),
            low=tuple(low for low, _ in limits),
            high=tuple(high for _, high in limits),
            bias=_tuples([lattice.tolist() for lattice in lattices]) if lattices else None,
        )
        scaled = [
            scale(self.grid.resample(volume, geometry), low, high)
            for volume, (low, high) in zip(volumes, limits, strict=True)
        ]
        return np.stack([self.grid.fit(volume, BACKGROUND) for volume in scaled]), placement

    def limits(self, volumes: Sequence[NDArray[Any]]) -> tuple[tuple[float, float], ...]:
        """The intensities of each volume (X, Y, Z) that become -1 and 1, after the crop to the body."""
        rule = Intensity(self.intensity, self.percentiles, self.window, self.zscore_clip)
        zscore = self.intensity == "zscore"
        return tuple(rule.limits(volume, body_mask(volume) if zscore else None) for volume in volumes)

    def apply_label(self, label: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Bring the class indices (X, Y, Z) of a case into model space, aligned with its image: (*shape), uint8."""
        return self.grid.place_label(label, geometry)

    def invert_image(self, image: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
        """Bring an image (M, *shape) in [-1, 1] back to the host's grid and units; the low limit outside `region`."""
        inverted = []
        for m, (volume, low, high) in enumerate(zip(image, placement.low, placement.high, strict=True)):
            values = low + (volume.astype(np.float64) + 1) / 2 * (high - low)
            inverted.append(self.grid.restore(values, placement, low, placement.bias_field(m)))
        return np.stack(inverted)

    def invert_deviation(self, deviation: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
        """Bring standard deviations (M, *shape) in model space to the host's grid and units; 0 outside `region`."""
        inverted = []
        for m, (volume, low, high) in enumerate(zip(deviation, placement.low, placement.high, strict=True)):
            values = volume.astype(np.float64) / 2 * (high - low)  # a deviation has no offset
            inverted.append(self.grid.restore(values, placement, 0.0, placement.bias_field(m)))
        return np.stack(inverted)

    def invert_label(self, label: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        """Bring class indices (*shape) back to the host's grid; 0 outside `region`."""
        return self.grid.restore_label(label, geometry)

    def invert_probabilities(self, foreground: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
        """Bring probabilities of the foreground classes, (num_classes - 1, *shape), back to the host's grid.

        They are interpolated as images are, and then made to sum to 1 again. Outside `region` all is background.

        Returns:
            (num_classes, X, Y, Z), background first.
        """
        restored = np.stack([self.grid.restore(plane, geometry, 0.0) for plane in foreground]).clip(0, 1)
        background = (1 - restored.sum(0, keepdims=True)).clip(0)
        planes = np.concatenate([background, restored])
        return np.asarray(planes / planes.sum(0), np.float32)

    def region(self, geometry: Geometry) -> Box:
        """See `ModelGrid.region`."""
        return self.grid.region(geometry)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint that loads without running code."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        return cls(**{key: _tuples(value) for key, value in values.items()})


def common_scale(placements: Sequence[Placement]) -> tuple[tuple[float, float], ...]:
    """Per modality the intensities that become -1 and 1, each the median over these scans."""
    low, high = (np.median([getattr(p, end) for p in placements], axis=0).tolist() for end in ("low", "high"))
    return tuple(zip(low, high, strict=True))


def fit_preprocessing(
    scans: Sequence[tuple[Sequence[int], NDArray[Any]]], options: DataOptions, multiple: Shape
) -> Preprocessing:
    """Choose the model space from the training scans and the options.

    Args:
        scans: (shape, affine in mm) of every training scan, after the crop.
        options: the `data` options.
        multiple: if no shape is given, each side of the model's grid is rounded up to a multiple of this number.
    """
    shape, spacing = fit_grid(scans, options, multiple)
    low, high = options.percentiles
    return Preprocessing(
        shape=shape,
        spacing=spacing,
        percentiles=(float(low), float(high)),
        intensity=options.intensity,
        window=_tuples(options.window),
        zscore_clip=options.zscore_clip,
        crop=options.crop,
        bias_correction=options.bias_correction,
    )


def body_box(image: NDArray[Any]) -> Box:
    """The box of an image (M, X, Y, Z) that holds the body in every modality, with a margin inside the image."""
    mask = body_mask(image[0])
    for volume in image[1:]:
        mask |= body_mask(volume)
    x, y, z = (
        (max(0, start - CROP_MARGIN), min(side, stop + CROP_MARGIN))
        for (start, stop), side in zip(bounding_box(mask), mask.shape, strict=True)
    )
    return x, y, z


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
