"""Pairs that are made from labelled training scans without a generator: copy-paste and random contrast.

Each function takes the material of a job and returns pairs that are computed when a batch needs them. A pair depends
only on its number and the job's seed, so nothing is stored and every sample is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, distance_transform_edt, gaussian_filter, shift

from medaug.cohort.schema import IGNORE, foreground
from medaug.comparison.material import Material
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.evaluation.baseline import trivial_dice
from medaug.evaluation.scores import MEAN_FOREGROUND

NUM_PAIRS = 10_000
"""Number of pairs; more than any job uses, so that pairs do not repeat."""
SCALES = (0.5, 2.0)
"""Limits of the factor by which lengths are scaled to match a volume."""
SAME_PLACE = 0.3
"""If the Dice of the trivial baseline is at least this, foreground lies in the same place in everyone: a structure."""

Volume = NDArray[np.float32]
Label = NDArray[np.uint8]


@dataclass(frozen=True)
class MadePairs(Sequence[ModelCase]):
    """A sequence of pairs that are computed when they are used.

    Attributes:
        length: number of pairs.
        make: returns the pair with a number in 0..`length`-1; a pure function.
    """

    length: int
    make: Callable[[int], ModelCase]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> ModelCase: ...
    @overload
    def __getitem__(self, index: slice) -> list[ModelCase]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(self.length))]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.make(index)


def alternating(first: Sequence[ModelCase], second: Sequence[ModelCase]) -> MadePairs:
    """Pairs of two kinds in turn; the kind that has fewer is repeated."""
    kinds = (first, second)

    def make(index: int) -> ModelCase:
        kind = kinds[index % 2]
        return kind[index // 2 % len(kind)]

    return MadePairs(2 * max(len(first), len(second)), make)


def pair_of(host: ModelCase, name: str, image: Volume, label: Label) -> ModelCase:
    """The host, with its image and label replaced by those of a pair that was made from it."""
    case = replace(host.case, name=f"{name}_{host.case.name}")
    return replace(host, case=case, image=image, label=label, content="")


def copy_paste(material: Material) -> MadePairs:
    """Paste a region of another subject's scan, with its label, into a scan (the host).

    Foreground that lies in different places in different subjects (lesions) is pasted somewhere else in the body, as
    in TumorCP (Yang et al. 2021). Foreground that lies in the same place (structures) is pasted where it is, with a
    margin of random width, as in CarveMix (Zhang et al. 2021).

    Raises:
        UserError: there are fewer than two labelled subjects.
    """
    cases = two_subjects(material, "copy_paste")
    labels, subjects = [np.asarray(case.label) for case in cases], [case.case.subject for case in cases]
    carve = trivial_dice(labels, subjects, material.schema)[MEAN_FOREGROUND] >= SAME_PLACE

    def make(index: int) -> ModelCase:
        rng = np.random.default_rng(named_seed(material.seed, "copy_paste", index))
        host, donor = choose_two(cases, rng)
        paste = carved if carve else moved_lesion
        return pair_of(host, "copy_paste", *paste(host, donor, rng))

    return MadePairs(NUM_PAIRS, make)


def carved(host: ModelCase, donor: ModelCase, rng: np.random.Generator) -> tuple[Volume, Label]:
    """Replace the host's voxels in a shrunk or grown version of the donor's foreground by the donor's voxels.

    The region holds the voxels whose signed distance to the border of the foreground is at most a random limit. In half
    of the cases this shrinks the foreground by up to half of its depth, in the other half it grows it by up to its
    whole depth.
    """
    inside = foreground(np.asarray(donor.label))
    if not inside.any() or inside.all():
        return np.array(host.image), np.array(host.label)
    distance = distance_transform_edt(~inside) - distance_transform_edt(inside)
    depth = -distance.min()
    limit = rng.uniform(-depth / 2, 0) if rng.random() < 0.5 else rng.uniform(0, depth)
    return _pasted(host, np.asarray(donor.image), np.asarray(donor.label), distance <= limit)


def moved_lesion(host: ModelCase, donor: ModelCase, rng: np.random.Generator) -> tuple[Volume, Label]:
    """Paste the donor's foreground voxels, centred at a random voxel of the host's body outside the host's foreground.

    Parts outside the grid are cut off. The brightness of the pasted voxels is scaled by 0.9 to 1.1.
    """
    inside = foreground(np.asarray(donor.label))
    body = (np.asarray(host.image).max(axis=0) > -0.95) & ~foreground(np.asarray(host.label))
    places = np.argwhere(body)
    if not inside.any() or not len(places):
        return np.array(host.image), np.array(host.label)
    centre = np.argwhere(inside).mean(axis=0).round().astype(int)
    offset = places[rng.integers(len(places))] - centre
    label = _shifted(np.asarray(donor.label), offset, 0)
    image = np.stack([_shifted(volume, offset, -1.0) for volume in np.asarray(donor.image)])
    image = np.clip((image + 1) * rng.uniform(0.9, 1.1) - 1, -1, 1).astype(np.float32)
    return _pasted(host, image, label, foreground(label))


def _pasted(host: ModelCase, image: Volume, label: Label, region: NDArray[np.bool_]) -> tuple[Volume, Label]:
    return (
        np.where(region, image, np.asarray(host.image)).astype(np.float32),
        np.where(region, label, np.asarray(host.label)).astype(np.uint8),
    )


def _shifted(volume: NDArray[Any], offset: NDArray[np.int_], fill: float) -> NDArray[Any]:
    return cast(NDArray[Any], shift(volume, offset, order=0, mode="constant", cval=fill))


def contrast_random(material: Material) -> MadePairs:
    """Images made from label maps alone, with random intensities (after SynthSeg, Billot et al. 2023).

    Raises:
        UserError: there is no labelled case.
    """
    if not material.real:
        raise UserError("arm contrast_random: there are no labelled training scans", "leave the arm out")

    def make(index: int) -> ModelCase:
        rng = np.random.default_rng(named_seed(material.seed, "contrast_random", index))
        host = material.real[int(rng.integers(len(material.real)))]
        return pair_of(host, "contrast", random_contrast(host, rng), np.array(host.label))

    return MadePairs(NUM_PAIRS, make)


def random_contrast(host: ModelCase, rng: np.random.Generator) -> Volume:
    """An image with a random mean and spread for each class; air stays air.

    The background holds many tissues, so it is divided into three parts by the terciles of the host's intensities;
    nothing else of the host's image is used. The image is then blurred and multiplied by a smooth field.
    """
    image, label = np.asarray(host.image), np.asarray(host.label)
    air = image.max(axis=0) <= -0.99
    regions = label.astype(np.int64)
    rest = (label == 0) & ~air
    if rest.any():
        terciles = np.quantile(image[0][rest], [1 / 3, 2 / 3])
        regions[rest] = IGNORE + 1 + np.digitize(image[0][rest], terciles)
    made = []
    for _ in image:
        volume = np.zeros(label.shape)
        for value in np.unique(regions[~air]):
            where = regions == value
            volume[where] = rng.normal(rng.uniform(0.05, 1), rng.uniform(0.01, 0.1), int(where.sum()))
        field = gaussian_filter(rng.standard_normal(label.shape), min(label.shape) / 4, mode="nearest")
        volume = gaussian_filter(volume, rng.uniform(0.3, 1.0)) * np.exp(0.15 * field / (field.std() + 1e-9))
        made.append(np.where(air, -1.0, np.clip(volume, 0, 1) * 2 - 1))
    return np.stack(made).astype(np.float32)


def volume_matched(material: Material) -> MadePairs:
    """Labelled scans, scaled so that their foreground has the volumes of the synthetic pairs' masks.

    It shows what the sizes of the masks are worth by themselves, without a generated image.

    Raises:
        UserError: there are no synthetic pairs, or no labelled scan has foreground.
    """
    volumes = [volume for case in material.synthetic if (volume := int(foreground(np.asarray(case.label)).sum()))]
    hosts = [case for case in material.real if foreground(np.asarray(case.label)).any()]
    if not volumes or not hosts:
        raise UserError(
            "arm volume_matched: needs synthetic pairs and labelled scans with foreground",
            "run medaug.generate first, or leave the arm out",
        )

    def make(index: int) -> ModelCase:
        rng = np.random.default_rng(named_seed(material.seed, "volume_matched", index))
        host, volume = hosts[int(rng.integers(len(hosts)))], volumes[int(rng.integers(len(volumes)))]
        own = int(foreground(np.asarray(host.label)).sum())
        return scaled(host, float(np.clip((volume / own) ** (1 / 3), *SCALES)))

    return MadePairs(NUM_PAIRS, make)


def scaled(host: ModelCase, factor: float) -> ModelCase:
    """A scan whose foreground is `factor` times as long along every axis, about the foreground's centre."""
    label = np.asarray(host.label)
    centre = np.argwhere(foreground(label)).mean(axis=0)
    matrix = np.full(3, 1 / factor)
    move = partial(affine_transform, matrix=matrix, offset=centre - matrix * centre, mode="nearest")
    image = np.stack([move(volume, order=1) for volume in np.asarray(host.image)])
    return pair_of(host, "scaled", image, move(label, order=0))


def two_subjects(material: Material, arm: str) -> Sequence[ModelCase]:
    """The labelled training cases, if they come from at least two subjects.

    Raises:
        UserError: there are fewer than two subjects; names the arm.
    """
    if len({case.case.subject for case in material.real}) < 2:
        raise UserError(f"arm {arm}: needs at least two labelled training subjects", "leave the arm out")
    return material.real


def choose_two(
    cases: Sequence[ModelCase], rng: np.random.Generator, donors: Sequence[ModelCase] | None = None
) -> tuple[ModelCase, ModelCase]:
    """Choose a host at random, and a donor from another subject (from `donors` if given, else from `cases`)."""
    host = cases[int(rng.integers(len(cases)))]
    others = [case for case in (cases if donors is None else donors) if case.case.subject != host.case.subject]
    return host, others[int(rng.integers(len(others)))]
