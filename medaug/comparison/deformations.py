"""Pairs from real deformations: a labelled scan is warped towards the shape of another training scan."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from medaug.comparison.made_pairs import NUM_PAIRS, MadePairs, choose_two, pair_of, two_subjects
from medaug.comparison.material import Material
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.files import atomic_write
from medaug.imaging.registration import ITERATIONS, SMOOTHING, register

NUM_DEFORMATIONS = 48
"""Maximum number of registrations per job. Each takes about a second for a volume of 40^3 voxels; results are saved."""


def warp(material: Material) -> MadePairs:
    """Image and mask of a labelled scan, moved by a random part of the displacement to another subject's scan.

    The displacements come from registering training scans, labelled or not, with diffeomorphic demons, so every shape
    lies between those of two real subjects.

    Raises:
        UserError: there are fewer than two labelled subjects.
    """
    cases = two_subjects(material, "warp")
    targets = [*material.real, *material.unlabelled]

    def make(index: int) -> ModelCase:
        rng = np.random.default_rng(named_seed(material.seed, "warp", index % NUM_DEFORMATIONS))
        host, target = choose_two(cases, rng, targets)
        part = np.random.default_rng(named_seed(material.seed, "warp part", index)).uniform(0.3, 1.0)
        return warped(host, part * displacement(host, target, material))

    return MadePairs(NUM_PAIRS, make)


def warped(host: ModelCase, field: NDArray[np.floating]) -> ModelCase:
    """Warp a case: voxel x of the result is the host's value at x + field(x); `field` is (3, X, Y, Z), in voxels."""
    label = np.asarray(host.label)
    positions = np.indices(label.shape) + field
    image = np.stack([map_coordinates(v, positions, order=1, mode="nearest") for v in np.asarray(host.image)])
    return pair_of(host, "warp", image, map_coordinates(label, positions, order=0, mode="nearest"))


def displacement(moving: ModelCase, fixed: ModelCase, material: Material) -> NDArray[np.float32]:
    """The displacement (3, X, Y, Z), in voxels, that makes one scan look like another; computed once and saved."""
    key = hashlib.sha256(f"{moving.content} {fixed.content} {ITERATIONS} {SMOOTHING}".encode()).hexdigest()[:24]
    path = material.folder / f"{key}.npy"
    if path.is_file():
        return np.load(path).astype(np.float32)
    field = register(np.asarray(moving.image)[0], np.asarray(fixed.image)[0]).astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, field)
    return field.astype(np.float32)
