"""Random changes of image and label together, each a function of its seed."""

from __future__ import annotations

import functools

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    ScaleIntensityRanged,
)
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from torch import Tensor


def light_affine(image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rotate, scale and shift half of the samples slightly; leave the other half untouched.

    Uses cubic splines, because a diffusion model would learn the blur of linear interpolation.

    Args:
        image: (M, X, Y, Z) in [-1, 1].
        label: (X, Y, Z) class indices.
        seed: seed of all random choices.
    """
    move = _light_move(seed)
    return (image, label) if move is None else _warp(image, label, *move, order=3)


def light_affine_soft(image: Tensor, probabilities: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The same change of an image and the probabilities (C, X, Y, Z) of its voxels."""
    move = _light_move(seed)
    if move is None:
        return image, probabilities
    moved, _ = _warp(image, probabilities[0], *move, order=3)
    shares = [_warp(image[:0], share, *move, order=1, label_order=1)[1] for share in probabilities]
    return moved, torch.stack(shares)


def _light_move(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The matrix and shift of `light_affine`; None: the sample stays as it is."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        return None
    matrix = random_affine(rng, rotation=4.0, scaling=0.05)
    return matrix, rng.normal(0, 1.0, 3)


def classical(image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The usual augmentation for segmentation: affine, bias field, noise, blur, brightness and contrast.

    Arguments and value ranges are those of `light_affine`.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < 0.8:
        matrix = random_affine(rng, rotation=8.0, scaling=0.08)
        image, label = _warp(image, label, matrix, rng.normal(0, 2.0, 3), order=1)
    intensity = _intensity()
    intensity.set_random_state(seed=seed % 2**32)
    out = intensity({"image": image})["image"]
    return torch.as_tensor(getattr(out, "as_tensor", lambda: out)()).float().clamp(-1, 1), label


def random_affine(rng: np.random.Generator, rotation: float, scaling: float) -> NDArray[np.float64]:
    """A rotation (normal angle about each axis, standard deviation in degrees) times log-normal scaling per axis."""
    angles = rng.normal(0, rotation, 3)
    scales = np.exp(rng.normal(0, scaling, 3))
    return np.asarray(Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scales))


@functools.cache
def _intensity() -> Compose:
    return Compose(
        [
            RandBiasFieldd("image", prob=0.2, coeff_range=(0.0, 0.1)),
            RandGaussianNoised("image", prob=0.2, std=0.1),
            RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.4, 0.8), sigma_y=(0.4, 0.8), sigma_z=(0.4, 0.8)),
            # Brightness and contrast act on [0, 1], where zero is the background.
            ScaleIntensityRanged("image", -1, 1, 0, 1),
            RandScaleIntensityd("image", prob=0.3, factors=0.2),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            ScaleIntensityRanged("image", 0, 1, -1, 1),
        ]
    )


def _warp(
    image: Tensor,
    label: Tensor,
    matrix: NDArray[np.float64],
    shift: NDArray[np.float64],
    order: int,
    label_order: int = 0,
) -> tuple[Tensor, Tensor]:
    """Resample about the centre: output voxel x takes matrix @ (x - centre) + centre + shift."""
    centre = (np.array(label.shape) - 1) / 2
    offset = centre + shift - matrix @ centre
    # The spline filter assumes mirrored borders; with any other mode scipy pads the volume first, which costs more
    # than the filter.
    mode = "mirror" if order > 1 else "nearest"
    volumes = [affine_transform(v, matrix, offset, order=order, mode=mode) for v in image.numpy()]
    warped = affine_transform(label.numpy(), matrix, offset, order=label_order, mode=mode)
    moved = torch.from_numpy(np.stack(volumes)).clamp(-1, 1) if volumes else image
    return moved, torch.from_numpy(warped)
