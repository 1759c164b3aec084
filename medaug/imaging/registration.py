"""Registers one volume to another: an affine transform, and a dense displacement by diffeomorphic demons."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

ITERATIONS = 60
SMOOTHING = 1.0
"""Standard deviation of the Gaussian that smooths the displacement after each iteration, in voxels."""


def register(moving: NDArray[np.float32], fixed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Displacement u (3, X, Y, Z), in voxels, for which `moving` sampled at x + u(x) resembles `fixed`.

    Uses diffeomorphic demons (Vercauteren et al. 2009), first at half resolution, in one thread so that the result does
    not depend on the machine's load.

    Args:
        moving, fixed: volumes (X, Y, Z).
    """
    field: sitk.Image | None = None
    for factor in (2, 1):
        small = [_image(volume, factor) for volume in (fixed, moving)]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(ITERATIONS)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(SMOOTHING)
        if field is None:
            field = demons.Execute(*small)
        else:
            field = demons.Execute(*small, sitk.Resample(field, small[0], sitk.Transform(), sitk.sitkLinear))
    assert field is not None
    # SimpleITK's arrays are (Z, Y, X, component); components are along X, Y, Z.
    return np.ascontiguousarray(np.moveaxis(sitk.GetArrayFromImage(field), -1, 0).transpose(0, 3, 2, 1), np.float32)


def register_affine(moving: NDArray[np.float32], fixed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Displacement u (3, X, Y, Z), in voxels, of the affine transform for which `moving` at x + u(x) resembles `fixed`.

    Least squares by gradient descent, first at half resolution, in one thread.

    Args:
        moving, fixed: volumes (X, Y, Z) of one shape.
    """
    transform = sitk.AffineTransform(3)
    transform.SetCenter([(side - 1) / 2 for side in fixed.shape])
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=1.0, minStep=1e-3, numberOfIterations=100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    method.SetInitialTransform(transform, inPlace=True)
    method.SetNumberOfThreads(1)
    method.Execute(*(_image(volume, 1) for volume in (fixed, moving)))
    centre = np.array(transform.GetCenter())
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    grid = np.indices(fixed.shape).reshape(3, -1)
    moved = matrix @ (grid - centre[:, None]) + centre[:, None] + np.array(transform.GetTranslation())[:, None]
    return (moved - grid).reshape(3, *fixed.shape).astype(np.float32)


def _image(volume: NDArray[np.float32], factor: int) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0)))
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, factor / 2.0), [factor] * 3) if factor > 1 else image
