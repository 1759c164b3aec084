"""The table of augmentations that an arm can name, and the strong one."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    ScaleIntensityRanged,
)
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from medaug.cohort.schema import LabelSchema
from medaug.data.batches import Augment
from medaug.data.transforms import classical
from medaug.tables import Table

_SIDES = re.compile(r"(?<![a-z])(left|right|lh|rh|l|r)(?![a-z])", re.IGNORECASE)


def mirror_axes(schema: LabelSchema) -> tuple[int, ...]:
    """The axes along which volumes may be mirrored: left-right, unless a label says which side it is on.

    Model space is RAS, so this is axis 0. Mirroring front to back or head to foot gives anatomy that does not occur.
    """
    return () if any(_SIDES.search(name.replace("_", " ")) for name in schema.foreground) else (0,)


@dataclass(frozen=True)
class Strong:
    """Augmentation as strong as nnU-Net's.

    Rotation (20% of the samples, up to 30 degrees about each axis), scaling (20%, 0.7 to 1.4), elastic deformation
    (20%), mirroring (half, where allowed), noise, blur, brightness, contrast, low resolution, gamma, and gamma of the
    inverted image; probabilities and ranges are those of nnU-Net (Isensee et al. 2021), except that nnU-Net v2 does not
    use elastic deformation.

    Attributes:
        axes: axes along which samples may be mirrored.
    """

    axes: tuple[int, ...] = ()

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Change an image (M, X, Y, Z) in [-1, 1] and its label (X, Y, Z) together."""
        move = self.movement(tuple(label.shape), seed)
        moved = torch.from_numpy(np.stack([move(volume, 1) for volume in image.numpy()]))
        return self.intensities(moved, seed), torch.from_numpy(move(label.numpy(), 0))

    def soft(self, image: Tensor, probabilities: NDArray[np.float32], seed: int) -> tuple[Tensor, Tensor]:
        """The same change of an image and the probabilities (C, X, Y, Z) of its voxels."""
        move = self.movement(tuple(image.shape[1:]), seed)
        moved = torch.from_numpy(np.stack([move(volume, 1) for volume in image.numpy()]))
        shares = torch.from_numpy(np.stack([move(volume, 1) for volume in probabilities]))
        return self.intensities(moved, seed), shares

    def movement(self, shape: tuple[int, ...], seed: int) -> Callable[[NDArray, int], NDArray]:
        """A function of a volume (X, Y, Z) and a spline order that moves its voxels."""
        rng = np.random.default_rng(seed)
        mirrored = tuple(axis for axis in self.axes if rng.random() < 0.5)
        matrix, elastic = np.eye(3), None
        if rng.random() < 0.2:
            matrix = random_rotation(rng, 30.0)
        if rng.random() < 0.2:
            matrix = matrix / rng.uniform(0.7, 1.4)
        if rng.random() < 0.2:
            noise = np.stack([gaussian_filter(rng.standard_normal(shape), 6, mode="nearest") for _ in range(3)])
            elastic = rng.uniform(1, 3) * noise / noise.std()
        moved = elastic is not None or not np.array_equal(matrix, np.eye(3))
        centre = ((np.array(shape) - 1) / 2)[:, None, None, None]
        if moved:
            grid = np.indices(shape, dtype=np.float32)
            positions = np.einsum("ij,jxyz->ixyz", matrix, grid - centre) + centre
            positions = positions if elastic is None else positions + elastic

        def move(volume: NDArray, order: int) -> NDArray:
            if moved:
                volume = map_coordinates(volume, positions, order=order, mode="nearest")
            return np.ascontiguousarray(np.flip(volume, mirrored)) if mirrored else volume

        return move

    def intensities(self, image: Tensor, seed: int) -> Tensor:
        """Change the intensities of an image (M, X, Y, Z); the result is in [-1, 1]."""
        chain = _strong_intensities()
        chain.set_random_state(seed=seed % 2**32)
        out = chain({"image": image})["image"]
        return torch.as_tensor(getattr(out, "as_tensor", lambda: out)()).float().clamp(-1, 1)


def random_rotation(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    """A rotation by an angle of up to `degrees` about each axis, (3, 3)."""
    return np.asarray(Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix())


@functools.cache
def _strong_intensities() -> Compose:
    return Compose(
        [
            RandBiasFieldd("image", prob=0.2, coeff_range=(0.0, 0.1)),
            RandGaussianNoised("image", prob=0.1, std=0.15),
            RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
            RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0)),
            # Brightness, contrast and gamma act on [0, 1], where zero is the background.
            ScaleIntensityRanged("image", -1, 1, 0, 1),
            RandScaleIntensityd("image", prob=0.15, factors=0.25),
            RandShiftIntensityd("image", prob=0.15, offsets=0.1),
            RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            ScaleIntensityRanged("image", 0, 1, -1, 1),
        ]
    )


@runtime_checkable
class Augmentation(Protocol):
    """An entry of the table: makes the augmentation for a label schema."""

    def __call__(self, schema: LabelSchema) -> Augment:
        """A function of image, label and seed."""


def make_classical(schema: LabelSchema) -> Augment:
    """Affine, bias field, noise, blur, brightness and contrast; see `medaug.data.transforms.classical`."""
    return classical


def make_strong(schema: LabelSchema) -> Augment:
    """See `Strong`."""
    return Strong(mirror_axes(schema))


AUGMENTATIONS: Table[Augmentation] = Table("augmentations", "augmentation", Augmentation)
