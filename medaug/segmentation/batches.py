"""What a segmenter is trained on, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medaug.cohort.schema import IGNORE
from medaug.data.batches import Samples, SharedBatches, TrainingBatches, confidence, shuffled_index
from medaug.diffusion.noise import named_seed
from medaug.networks.condition import one_hot
from medaug.segmentation.protocol import PseudoLabels, TrainingSet

TRAINED_ON = ("image", "label", "soft", "weight")
"""Entries of a batch that training uses: `image` (B, M, X, Y, Z), and either `label` (B, X, Y, Z), or the probabilities
`soft` (B, C, X, Y, Z) with the `weight` (B, X, Y, Z) of every voxel."""


def training_batches(
    training_set: TrainingSet, batch_size: int, num_classes: int, steps: int, seed: int
) -> Dataset[dict[str, Tensor]]:
    """Batches in which each kind of volume has its share; each kind has a seeded order of its own."""
    pseudo, finish = training_set.pseudo, training_set.synthetic_finish
    no_synthetic_from = round(steps * (1 - finish)) if training_set.real and training_set.synthetic else steps
    no_pseudo_from = 0 if pseudo is None else round(steps * (1 - pseudo.finish))

    def batches(step: int) -> SharedBatches:
        synthetic = training_set.synthetic if step < no_synthetic_from else ()
        kinds = replace(training_set, synthetic=synthetic)
        with_pseudo = pseudo is not None and step < no_pseudo_from
        num_pseudo = batch_size * pseudo.share if pseudo is not None and with_pseudo else 0
        parts = _labelled_parts(kinds, batch_size - num_pseudo, seed)
        if with_pseudo or any(case.weight is not None for case in (*kinds.real, *kinds.synthetic)):
            parts = [(Softened(part, num_classes), count) for part, count in parts]
        if pseudo is not None and with_pseudo:
            parts.append((PseudoSamples(pseudo, named_seed(seed, "pseudo")), num_pseudo))
        return SharedBatches(parts)

    return Phases(
        [(start, batches(start)) for start in sorted({0, no_synthetic_from, no_pseudo_from}) if start < steps]
    )


def _labelled_parts(training_set: TrainingSet, batch_size: float, seed: int) -> list[tuple[Samples, float]]:
    num_synthetic = training_set.num_synthetic(batch_size)
    parts = (
        (training_set.real, batch_size - num_synthetic, "real"),
        (training_set.synthetic, num_synthetic, "synthetic"),
    )
    return [
        (WeightedBatches(cases, 1, named_seed(seed, name), training_set.augment), count)
        for cases, count, name in parts
        if count
    ]


class Phases(Dataset[dict[str, Tensor]]):
    """The batches of several datasets, each from its step on until the next one's; steps ascend from 0."""

    def __init__(self, phases: Sequence[tuple[int, SharedBatches]]) -> None:
        self.phases = phases

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return [batches for start, batches in self.phases if start <= step][-1][step]


class WeightedBatches(TrainingBatches):
    """Batches with weights of the voxels, `weight` (B, X, Y, Z) in 0..1, for cases that have weights."""

    def sample(self, position: int) -> dict[str, Tensor]:
        """Sample number `position` of the run."""
        sample = super().sample(position)
        case = self.cases[shuffled_index(position, len(self.cases), named_seed(self.seed, "order"))]
        if case.weight is None:
            return sample
        weight = torch.from_numpy(case.weight).long()
        if self.augment is not None:  # the weights move as the label does
            _, weight = self.augment(torch.from_numpy(np.array(case.image)), weight, int(sample["seed"]))
        return sample | {"weight": weight / 255}


class Softened:
    """Samples whose labels are given as probabilities; ignored voxels have weight 0."""

    def __init__(self, samples: Samples, num_classes: int) -> None:
        self.samples, self.num_classes = samples, num_classes

    def sample(self, position: int) -> dict[str, Tensor]:
        """Sample number `position` of the run."""
        sample = self.samples.sample(position)
        label = sample["label"]
        soft = one_hot(label[None], self.num_classes)[0].float()
        return {"image": sample["image"], "soft": soft, "weight": (label != IGNORE) * sample.get("weight", 1.0)}


def random_block(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """A block of the shape of a volume, with a share of 1/4 to 1/2 of its voxels, up to rounding, at a random place.

    For CutMix (Yun et al., ICCV 2019), with soft labels as in French et al. (BMVC 2020).
    """
    ratio = rng.uniform(0.25, 0.5) ** (1 / len(shape))
    sides = [max(1, round(side * ratio)) for side in shape]
    starts = [int(rng.integers(whole - side + 1)) for whole, side in zip(shape, sides, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


class PseudoSamples:
    """Scans with pseudo-labels, strongly augmented; a voxel's weight is the teachers' confidence times the scan's."""

    def __init__(self, pseudo: PseudoLabels, seed: int) -> None:
        self.pseudo, self.seed = pseudo, seed

    def sample(self, position: int) -> dict[str, Tensor]:
        """Sample number `position` of the run."""
        num = len(self.pseudo.cases)
        index = shuffled_index(position, num, named_seed(self.seed, "order"))
        found = self._augmented(index, position)
        rng = np.random.default_rng(named_seed(self.seed, "cutmix", position))
        if num > 1 and rng.random() < self.pseudo.cutmix:
            other = self._augmented((index + int(rng.integers(1, num))) % num, named_seed(self.seed, "other", position))
            x, y, z = random_block(tuple(found["weight"].shape), rng)
            for key, value in other.items():
                found[key][..., x, y, z] = value[..., x, y, z]
        return found

    def _augmented(self, index: int, position: int) -> dict[str, Tensor]:
        image = torch.from_numpy(np.array(self.pseudo.cases[index].image))
        shares = self.pseudo.probabilities[index].astype(np.float32)
        image, soft = self.pseudo.augment.soft(image, shares, named_seed(self.seed, "sample", position))
        soft = soft / soft.sum(0, keepdim=True).clamp(min=1e-6)
        trust = 1.0 if self.pseudo.weights is None else self.pseudo.weights[index]
        return {"image": image, "soft": soft, "weight": trust * confidence(soft)}
