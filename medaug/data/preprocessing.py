"""One invertible object between the host's grid and model space.

Model space: RAS orientation, one grid for the whole cohort, images in [-1, 1] with -1 as background, labels as
contiguous class indices. The object is fitted on the training split, stored in the checkpoint, and inverted on export.

The steps, in their order: orientation, crop to the body, bias field, intensity limits, resampling, scaling to [-1, 1],
crop and pad about the centre to the model's grid. The way back undoes them; `Preprocessing.region` is the box of host
voxels that the model drew, and every voxel beyond it is background: the volume's low limit, or class 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from numpy.typing import NDArray

from medaug.data.grid import Shape, Spacing, fit_grid, orientation_of, oriented_spacing, resampled_shape
from medaug.data.resampling import coarse_axis, resample_image, resample_label
from medaug.imaging.bias import bias_field, estimate_bias
from medaug.imaging.body import body_mask, bounding_box
from medaug.imaging.intensity import Intensity, scale
from medaug.options import DataOptions

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along each axis, voxels."""

BACKGROUND = -1.0
CROP_MARGIN = 3  # voxels of air that stay round the body
RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True)
class Placement:
    """What was done to one case: enough to undo it, and nothing else.

    Attributes:
        shape: the host's grid, voxels.
        orientation: nibabel orientation (axis, flip) of each host axis.
        resampled: shape after reorientation, crop to the body and resampling, before crop and pad to the model's grid.
        low, high: intensity of -1 and of 1, per modality, in the host's units (after the bias field was divided out).
        box: what the crop to the body kept of the reoriented host; None: all of it.
        coarse: the axis (of R, A, S) of thick slices, across which interpolation is linear; None: there is none.
        bias: per modality the logarithm of the bias field on a coarse lattice (A, B, C), as nested tuples; None: none.
    """

    shape: Shape
    orientation: tuple[tuple[int, int], ...]
    resampled: Shape
    low: tuple[float, ...]
    high: tuple[float, ...]
    box: Box | None = None
    coarse: int | None = None
    bias: tuple[Any, ...] | None = None

    @property
    def oriented(self) -> Shape:
        """The host's shape with its axes in RAS order."""
        sides = {axis: side for (axis, _), side in zip(self.orientation, self.shape, strict=True)}
        return sides[0], sides[1], sides[2]

    @property
    def kept(self) -> Box:
        """The box of the reoriented host that went on to be resampled."""
        x, y, z = self.oriented
        return self.box or ((0, x), (0, y), (0, z))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Placement:
        """The inverse of `to_dict`, also after JSON has made lists of its tuples."""
        return cls(**{key: _tuples(value) for key, value in values.items()})


@dataclass(frozen=True)
class Preprocessing:
    """The model's grid and intensity scale for one cohort.

    Attributes:
        shape: the model's grid, voxels along R, A, S.
        spacing: voxel size in mm that scans are resampled to; None keeps every scan's own voxels.
        percentiles, intensity, window, zscore_clip: what becomes -1 and 1, see `Intensity`, judged per volume on the
            host's voxels that the crop keeps; what lies beyond is clipped.
        crop: "body" cuts off what lies more than three voxels outside the body (of any modality); "none".
        bias_correction: divide by N4's estimate of the bias field; the inverse multiplies, so that an exported pair
            carries its host's bias field again.
    """

    shape: Shape
    spacing: Spacing | None
    percentiles: tuple[float, float] = (0.5, 99.5)
    intensity: str = "percentile"
    window: tuple[float, float] | None = None
    zscore_clip: float = 4.0
    crop: str = "none"
    bias_correction: bool = False

    def apply_image(
        self, image: NDArray[Any], affine: NDArray[Any], box: Box | None = None
    ) -> tuple[NDArray[np.float32], Placement]:
        """Bring an image (M, X, Y, Z) in host units into model space: (M, *shape), float32 in [-1, 1].

        `box` takes the place of the crop to the body, so that one image can go where another went.
        """
        orientation = orientation_of(affine)
        oriented = np.stack([apply_orientation(volume, orientation) for volume in image])
        spacing = oriented_spacing(affine)
        if box is None and self.crop == "body":
            box = body_box(oriented)
        volumes: list[NDArray[Any]] = [volume[_slices(box)] for volume in oriented] if box else list(oriented)
        lattices = [estimate_bias(volume, spacing) for volume in volumes] if self.bias_correction else []
        if lattices:
            volumes = [v / bias_field(lattice, v.shape) for v, lattice in zip(volumes, lattices, strict=True)]
        rule = Intensity(self.intensity, self.percentiles, self.window, self.zscore_clip)
        zscore = self.intensity == "zscore"
        limits = [rule.limits(volume, body_mask(volume) if zscore else None) for volume in volumes]
        resampled = resampled_shape(volumes[0].shape, spacing, self.spacing)
        coarse = coarse_axis(spacing, self.spacing) if self.spacing else None
        x, y, z = image.shape[1:]
        placement = Placement(
            shape=(x, y, z),
            orientation=tuple((int(axis), int(flip)) for axis, flip in orientation),
            resampled=resampled,
            low=tuple(low for low, _ in limits),
            high=tuple(high for _, high in limits),
            box=box,
            coarse=coarse,
            bias=_tuples([lattice.tolist() for lattice in lattices]) if lattices else None,
        )
        scaled = [
            scale(resample_image(volume.astype(np.float64), resampled, coarse), low, high)
            for volume, (low, high) in zip(volumes, limits, strict=True)
        ]
        return np.stack([_fit(volume, self.shape, BACKGROUND) for volume in scaled]), placement

    def apply_label(self, label: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
        """Bring the class indices (X, Y, Z) of a case into model space, to where its image went: (*shape), uint8."""
        oriented = apply_orientation(label, np.array(placement.orientation))[_slices(placement.kept)]
        return _fit(resample_label(oriented, placement.resampled), self.shape, 0)

    def invert_image(self, image: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
        """Bring (M, *shape) in [-1, 1] back to the host's grid and units; outside `region`: the low limit."""
        inverted = []
        for m, (volume, low, high) in enumerate(zip(image, placement.low, placement.high, strict=True)):
            values = low + (volume.astype(np.float64) + 1) / 2 * (high - low)
            kept = [stop - start for start, stop in placement.kept]
            values = resample_image(_fit(values, placement.resampled, None), kept, placement.coarse)
            if placement.bias is not None:
                values = values * bias_field(np.array(placement.bias[m]), kept)
            inverted.append(self._put_back(values, placement, low).astype(np.float32))
        return np.stack(inverted)

    def invert_label(self, label: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
        """Bring class indices (*shape) back to the host's grid; outside `region`: 0."""
        kept = [stop - start for start, stop in placement.kept]
        return self._put_back(resample_label(_fit(label, placement.resampled, None), kept), placement, 0)

    def region(self, placement: Placement) -> Box:
        """The host voxels, along the host's own axes, whose centres lie within the model's grid: what it drew."""
        drawn = self._drawn(placement)
        x, y, z = (
            (start, stop) if flip > 0 else (side - stop, side - start)
            for (axis, flip), side in zip(placement.orientation, placement.shape, strict=True)
            for start, stop in [drawn[axis]]
        )
        return x, y, z

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint that loads without running code."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        return cls(**{key: _tuples(value) for key, value in values.items()})

    def _drawn(self, placement: Placement) -> Box:
        """`region` along the axes of the reoriented host."""
        ends = []
        for (start, stop), new, model in zip(placement.kept, placement.resampled, self.shape, strict=True):
            first = max(0, (new - model) // 2)
            # Voxel h has its centre at (h + 1/2) * new / old of the resampled grid.
            edges = [-(-(2 * edge * (stop - start) - new) // (2 * new)) for edge in (first, first + min(new, model))]
            ends.append((start + edges[0], start + edges[1]))
        x, y, z = ends
        return x, y, z

    def _put_back(self, values: NDArray[Any], placement: Placement, fill: float) -> NDArray[Any]:
        """The drawn part of a volume on the grid of `kept`, in a host's grid that is `fill` elsewhere."""
        host = np.full(placement.oriented, fill, values.dtype)
        drawn = self._drawn(placement)
        inner = [(a - start, b - start) for (a, b), (start, _) in zip(drawn, placement.kept, strict=True)]
        host[_slices(drawn)] = values[_slices(inner)]
        return np.asarray(apply_orientation(host, ornt_transform(RAS, np.array(placement.orientation))))


def common_scale(placements: Sequence[Placement]) -> tuple[tuple[float, float], ...]:
    """Per modality the intensities of -1 and of 1, each the median over these scans."""
    low, high = (np.median([getattr(p, end) for p in placements], axis=0).tolist() for end in ("low", "high"))
    return tuple(zip(low, high, strict=True))


def fit_preprocessing(
    scans: Sequence[tuple[Sequence[int], NDArray[Any]]], options: DataOptions, multiple: Shape
) -> Preprocessing:
    """Choose the model space from the training scans and the options, which `check_options` found possible.

    Args:
        scans: (shape, affine in mm) of every training scan, after the crop.
        options: the `data` node.
        multiple: each side of the model's grid is rounded up to a multiple of its number where no shape is given.
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


def filled(scan: int, model: int) -> slice:
    """Where a side of a resampled scan lies on the model's grid after crop and pad about the centre."""
    before = max(0, (model - scan) // 2)
    return slice(before, before + min(scan, model))


def body_box(image: NDArray[Any]) -> Box:
    """The box of (M, X, Y, Z) that holds the body as any modality shows it, and a margin where there is one."""
    mask = body_mask(image[0])
    for volume in image[1:]:
        mask |= body_mask(volume)
    x, y, z = (
        (max(0, start - CROP_MARGIN), min(side, stop + CROP_MARGIN))
        for (start, stop), side in zip(bounding_box(mask), mask.shape, strict=True)
    )
    return x, y, z


def _slices(box: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _fit(volume: NDArray[Any], shape: Sequence[int], fill: float | None) -> NDArray[Any]:
    """Crop and pad about the centre, with `fill` or (None) the outermost voxels. Its own inverse up to the cropped."""
    source, pad = [], []
    for old, new in zip(volume.shape, shape, strict=True):
        source.append(filled(new, old))
        before = filled(old, new).start
        pad.append((before, max(0, new - old) - before))
    cropped = volume[tuple(source)]
    return np.pad(cropped, pad, mode="edge") if fill is None else np.pad(cropped, pad, constant_values=fill)
