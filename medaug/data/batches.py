"""Training batches as a pure function of the step, so that a resumed run equals an uninterrupted one.

Sample p of the run (p = step * global batch + index in the batch) uses the case that a seeded permutation of its epoch
gives. Its augmentation, time and noise come from generators seeded by p. Nothing depends on the number of workers, on
the ranks, or on the step at which a run was resumed.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.data.cases import ModelCase
from medaug.data.patches import Patches
from medaug.data.transforms import light_affine_soft
from medaug.diffusion.noise import named_seed
from medaug.diffusion.windows import Box, divided, place
from medaug.networks.condition import signed_planes

Augment = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def shuffled_index(position: int, length: int, seed: int) -> int:
    """The index, of `length` items, that sample `position` uses. Every epoch is another permutation of the items."""
    epoch, step = divmod(position, length)
    return int(np.random.default_rng([seed, epoch]).permutation(length)[step])


class TrainingBatches(Dataset[dict[str, Tensor]]):
    """Item `step` is the batch that this rank trains on at that step.

    image (B, M, X, Y, Z) float32 in [-1, 1]; label (B, X, Y, Z) int64; inside (B, Z) bool and field_of_view (B, X, Y,
    Z) bool, which slices and voxels lie in the scan (before augmentation); labelled (B,) bool; attributes (B, A)
    float32; seed (B,) int64, seed of the sample's time, noise and condition dropout. With `sliced`, for 2D networks,
    the augmentation leaves out slices of padding.

    `of` makes them batches of patches: X, Y and Z are then those of a patch, and place (B, 6) float32 says where each
    lies (`medaug.diffusion.windows.place`). It can also make `field_of_view` move with the image.
    """

    patches: Patches | None = None
    moves_field_of_view = False

    def __init__(
        self,
        cases: Sequence[ModelCase],
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
        attributes: AttributeEncoder = NO_ATTRIBUTES,
        sliced: bool = False,
    ) -> None:
        self.cases = cases
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.rank = rank
        self.world_size = world_size
        self.attributes = attributes
        self.sliced = sliced

    def of(self, patches: Patches | None, moves_field_of_view: bool = False) -> Self:
        """These batches, of patches of the cases; None: of whole cases.

        If `field_of_view` is to move with the image, the augmentation must accept an image without channels.
        """
        self.patches, self.moves_field_of_view = patches, moves_field_of_view
        return self

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        first = (step * self.world_size + self.rank) * self.batch_size
        return collate([self.sample(first + i) for i in range(self.batch_size)])

    def sample(self, position: int) -> dict[str, Tensor]:
        """Sample number `position` of the run."""
        case = self.cases[shuffled_index(position, len(self.cases), named_seed(self.seed, "order"))]
        seed = named_seed(self.seed, "sample", position)
        read, patch, where = self._cut(case, seed)
        sample = as_tensors(case, self.attributes, read)
        if self.augment is not None:
            part = case.slices if self.sliced else slice(None)
            image, label = self.augment(sample["image"][..., part], sample["label"][..., part], seed)
            sample["image"][..., part], sample["label"][..., part] = image, label
            self._move_field_of_view(sample["field_of_view"][..., part], seed)
        return cropped(sample, patch) | {"seed": torch.tensor(seed)} | where

    def _cut(self, case: ModelCase, seed: int) -> tuple[Box, Box, dict[str, Tensor]]:
        """The box of a case that is read, the part of it that is the sample, and the entries that say where that is."""
        if self.patches is None:
            return WHOLE, WHOLE, {}
        box = self.patches.box(case, seed)
        outer, inner = (box, WHOLE) if self.augment is None else self.patches.around(box, case.image.shape[1:])
        return outer, inner, located(self.patches, case, box)

    def _move_field_of_view(self, inside: Tensor, seed: int) -> None:
        """Move the field of view (X, Y, Z) as the augmentation moves an image, in place."""
        if self.moves_field_of_view and self.augment is not None and not inside.all():
            inside[:] = self.augment(torch.empty(0, *inside.shape), inside.long(), seed)[1].bool()


class SoftBatches(TrainingBatches):
    """Batches in which scans without a human label have soft labels of teachers (`ModelCase.soft`), if they have any.

    A batch has three entries more than those of `TrainingBatches`: soft (B, num_classes - 1, X, Y, Z) float32, 1 inside
    a foreground class, -1 outside, 0 where ignored; trust (B, X, Y, Z) float32, how far each voxel of `soft` can be
    trusted, 0..1; scan_trust (B,), the same for the whole scan. A human label has a trust of 1. A scan with soft labels
    counts as labelled.

    Args:
        arguments: those of `TrainingBatches`.
        num_classes: number of classes, with background.
    """

    def __init__(self, *arguments: Any, num_classes: int) -> None:
        super().__init__(*arguments)
        self.num_classes = num_classes

    def sample(self, position: int) -> dict[str, Tensor]:
        """Sample number `position` of the run."""
        case = self.cases[shuffled_index(position, len(self.cases), named_seed(self.seed, "order"))]
        if case.soft is None:
            sample = super().sample(position)
            planes = signed_planes(sample["label"][None], self.num_classes)[0]
            return sample | {"soft": planes, "trust": torch.ones(planes.shape[1:]), "scan_trust": torch.tensor(1.0)}
        seed = named_seed(self.seed, "sample", position)
        read, patch, where = self._cut(case, seed)
        sample = as_tensors(case, self.attributes, read)
        image, shares = sample["image"], torch.from_numpy(case.soft[(..., *read)].astype(np.float32) / 255)
        if self.augment is not None:
            part = case.slices if self.sliced else slice(None)
            image[..., part], shares[..., part] = light_affine_soft(image[..., part], shares[..., part], seed)
            self._move_field_of_view(sample["field_of_view"][..., part], seed)
        shares = shares / shares.sum(0, keepdim=True).clamp(min=1e-6)
        shares = shares[(..., *patch)]
        return cropped(sample | {"image": image}, patch) | {
            "label": shares.argmax(0),
            "labelled": torch.tensor(True),
            "seed": torch.tensor(seed),
            "soft": 2 * shares[1:] - 1,
            "trust": confidence(shares),
            "scan_trust": torch.tensor(case.trust, dtype=torch.float32),
            **where,
        }


def confidence(probabilities: Tensor) -> Tensor:
    """1 where one class is certain, 0 where all C classes are equally likely: (C, X, Y, Z) to (X, Y, Z)."""
    least = 1 / len(probabilities)
    return ((probabilities.amax(0) - least) / (1 - least)).clamp(0, 1)


class MixedBatches(Dataset[dict[str, Tensor]]):
    """Item `step` concatenates the batches of several datasets, so that each has a fixed share of every batch."""

    def __init__(self, parts: Sequence[TrainingBatches]) -> None:
        self.parts = parts

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        batches = [part[step] for part in self.parts]
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


class Samples(Protocol):
    """Samples by their number in a run."""

    def sample(self, position: int) -> dict[str, Tensor]:
        """Sample number `position` of the run."""


class SharedBatches(Dataset[dict[str, Tensor]]):
    """Batches of samples of several kinds, each with a fixed number of samples per batch on average.

    Where that number is not whole, batches alternate between the two nearest numbers. All batches have the same size.

    Args:
        parts: samples of each kind, with their mean number in a batch; together a whole number.
    """

    def __init__(self, parts: Sequence[tuple[Samples, float]]) -> None:
        self.parts = parts

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        samples, before, upto = [], 0.0, 0.0
        for part, count in self.parts:
            upto += count
            first, stop = (_used(at, upto) - _used(at, before) for at in (step, step + 1))
            samples += [part.sample(position) for position in range(first, stop)]
            before = upto
        return collate(samples)


def _used(steps: int, count: float) -> int:
    """How many samples are used up after some steps."""
    return math.floor(steps * count + 1e-6)


class FixedBatches(Dataset[dict[str, Tensor]]):
    """Every case once, in order, each with its own fixed seed, so that validation losses can be compared.

    With `patches`, one patch of every case, always the same.
    """

    def __init__(
        self,
        cases: Sequence[ModelCase],
        batch_size: int,
        seed: int,
        attributes: AttributeEncoder = NO_ATTRIBUTES,
        patches: Patches | None = None,
    ) -> None:
        self.cases = cases
        self.batch_size = batch_size
        self.seed = seed
        self.attributes = attributes
        self.patches = patches

    def __len__(self) -> int:
        return -(-len(self.cases) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = range(index * self.batch_size, min((index + 1) * self.batch_size, len(self.cases)))
        return collate([self._sample(self.cases[i], named_seed(self.seed, "validation", i)) for i in chosen])

    def _sample(self, case: ModelCase, seed: int) -> dict[str, Tensor]:
        if self.patches is None:
            return as_tensors(case, self.attributes) | {"seed": torch.tensor(seed)}
        box = self.patches.box(case, seed)
        sample = as_tensors(case, self.attributes, box) | {"seed": torch.tensor(seed)}
        return sample | located(self.patches, case, box)


class StepsFrom(Sampler[int]):
    """Steps `start`..`stop`-1. The length is `stop`, because the training loop counts from 0 in resumed runs too."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop


WHOLE: Box = (slice(None), slice(None), slice(None))
"""The box of all voxels."""


def as_tensors(case: ModelCase, attributes: AttributeEncoder = NO_ATTRIBUTES, box: Box = WHOLE) -> dict[str, Tensor]:
    """The entries of one case, see `TrainingBatches`; a case without a label gets a label of zeros.

    Of memory-mapped arrays, only the voxels in the box are read.
    """
    image = torch.from_numpy(np.array(case.image[(slice(None), *box)]))
    label = np.zeros(image.shape[1:], np.uint8) if case.label is None else np.array(case.label[box])
    x, y, z = (torch.zeros(side, dtype=torch.bool) for side in case.image.shape[1:])
    for axis, part in zip((x, y, z), case.field_of_view, strict=True):
        axis[part] = True
    return {
        "image": image,
        "label": torch.from_numpy(label).long(),
        "field_of_view": x[box[0], None, None] & y[box[1], None] & z[box[2]],
        "inside": z[box[2]],
        "labelled": torch.tensor(case.label is not None),
        "attributes": attributes.encode(attributes.of(case.case, case.affine)),
    }


def cropped(sample: dict[str, Tensor], box: Box) -> dict[str, Tensor]:
    """A sample's volumes in a box, and its other entries as they are."""
    volumes = {name: sample[name][(..., *box)] for name in ("image", "label", "field_of_view")}
    return sample | volumes | {"inside": sample["inside"][box[2]]}


def located(patches: Patches, case: ModelCase, box: Box) -> dict[str, Tensor]:
    """The entry of a batch that says where in a case a patch lies."""
    blocks = tuple(slice(p.start // s, p.stop // s) for p, s in zip(box, patches.stride, strict=True))
    return {"place": place((blocks[0], blocks[1], blocks[2]), divided(case.image.shape[1:], patches.stride))}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack each entry along a new first axis."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def make_loader(
    batches: Dataset[dict[str, Tensor]], steps: StepsFrom, num_workers: int
) -> DataLoader[dict[str, Tensor]]:
    """Load the batches of these steps, prefetched by `num_workers` processes; 0 loads them in this process."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_parent,
        # Without its own generator, a loader would draw its workers' seeds from the global random state.
        generator=torch.Generator(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Ignore the signals that Ctrl-C and SLURM send to every process: the current step may still need the batch.

    The parent ends its workers when it is done. A second SIGTERM ends the worker, because multiprocessing sends one to
    workers that do not stop.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
