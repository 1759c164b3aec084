"""Growth of a phantom's tumour: two fronts that travel through tissue at random speed.

The mass (necrotic core inside an enhancing rim) spreads from a point at a speed that varies smoothly, so that it is
compact but irregular, and is higher in white matter. Oedema starts at the surface of the mass and spreads along white
matter. Arrival times are geodesic distances, t(x) = min over paths of the integral of ds / speed, computed with
Dijkstra's algorithm; each class consists of the voxels that its front reaches first, up to its volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.graph import MCP_Geometric

from medaug.layouts.brats import BRATS

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

_VALUES = {name: int(value) for value, name in BRATS["brats2020"].schema["labels"].items()}
NECROSIS, OEDEMA, ENHANCING = (_VALUES[name] for name in ("necrotic core", "oedema", "enhancing tumour"))
MINIMUM_VOXELS = 5
"""Each class gets at least this many voxels, however coarse the grid."""
REACH_MM = 65.0
"""No tumour extends further from its origin, so that fronts need not be computed for the whole head."""


@dataclass(frozen=True)
class TumourSize:
    """Volumes in millilitres (1000 mm3)."""

    core: float
    rim: float
    oedema: float


def grow_tumour(
    white: Floats,
    fluid: Floats,
    brain: Mask,
    origin: tuple[int, int, int],
    spacing: Floats,
    roughness: Floats,
    size: TumourSize,
) -> NDArray[np.uint8]:
    """Grow one tumour and return its label (X, Y, Z) in BraTS values: 1 necrotic core, 2 oedema, 4 enhancing.

    Every face neighbour of a core voxel is core or rim; no class enters cerebrospinal fluid or leaves the brain.

    Args:
        white: white matter fraction, 0..1, (X, Y, Z).
        fluid: cerebrospinal fluid fraction, 0..1.
        brain: brain mask.
        origin: voxel where the tumour begins.
        spacing: voxel size in mm, (3,).
        roughness: smooth field, mean about 0, variance about 1; speeds are multiplied by exp(roughness / 2).
        size: volume of each class; smaller if there are too few voxels within `REACH_MM` of the origin.
    """
    ranges = (step * (np.arange(side) - i) for side, i, step in zip(brain.shape, origin, spacing, strict=True))
    near = sum(distance**2 for distance in np.meshgrid(*ranges, indexing="ij", sparse=True)) < REACH_MM**2
    allowed = brain & (fluid < 0.5) & near
    speed = np.where(allowed, np.exp(0.5 * roughness), 0)
    voxel = float(np.prod(spacing)) / 1000

    seed = np.zeros(brain.shape, bool)
    seed[origin] = True
    time = _arrival(speed * (0.3 + white), seed, spacing)
    core = _earliest(time, ndimage.binary_erosion(allowed), size.core / voxel)
    # The dilation closes the rim where it is thinner than a voxel.
    closed = allowed & ndimage.binary_dilation(core)
    mass = closed | _earliest(time, allowed & ~core, size.rim / voxel)

    # Grey matter slows oedema down about tenfold: it stops at the cortex and follows the gyral white matter.
    time = _arrival(speed * (0.08 + white**2), mass, spacing)
    oedema = _earliest(time, allowed & ~mass, size.oedema / voxel)

    label = np.zeros(brain.shape, np.uint8)
    label[oedema] = OEDEMA
    label[mass] = ENHANCING
    label[core] = NECROSIS
    return label


def _arrival(speed: Floats, start: Mask, spacing: Floats) -> Floats:
    """Return the time (mm at speed 1) at which a front from `start` reaches each voxel; infinite if it never does."""
    cost = np.full(speed.shape, -1.0)  # a negative cost cannot be entered
    np.divide(1.0, speed, out=cost, where=speed > 0)
    cost[start] = np.abs(cost[start])
    surface = np.argwhere(start & ~ndimage.binary_erosion(start)).tolist()
    times, _ = MCP_Geometric(cost, sampling=tuple(spacing)).find_costs(surface)
    return np.asarray(times)


def _earliest(times: Floats, where: Mask, count: float) -> Mask:
    """Return the `count` voxels of `where` that the front reaches first, or all that it reaches if there are fewer."""
    reached = where & np.isfinite(times)
    ordered = np.sort(times[reached])
    last = min(max(round(count), MINIMUM_VOXELS), len(ordered)) - 1
    return np.asarray(reached & (times <= ordered[last])) if len(ordered) else reached
