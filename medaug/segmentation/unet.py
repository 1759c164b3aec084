"""A MONAI U-Net trained by Dice and cross-entropy for a fixed number of steps."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, cross_entropy

from medaug.cohort.schema import IGNORE
from medaug.data.augmentations import mirror_axes
from medaug.data.batches import StepsFrom, make_loader
from medaug.data.cases import ModelCase
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.networks.condition import one_hot
from medaug.networks.finite import not_finite
from medaug.options import SegmenterOptions
from medaug.processes import choose_device
from medaug.progress import track
from medaug.segmentation.batches import TRAINED_ON, training_batches
from medaug.segmentation.nets import Build, build_unet
from medaug.segmentation.protocol import Problem, TrainingSet
from medaug.training.archive import load_weights, read_archive
from medaug.training.model import has_bf16, sound_in_bf16

log = logging.getLogger(__name__)


class UNetSegmenter:
    """A U-Net as a `Judge` (`medaug.segmentation.protocol`).

    Args:
        problem: what to segment.
        options: size of the network, learning rate and batch size.
        build: function that makes the untrained network.
    """

    net: nn.Module  # set by `fit`

    def __init__(self, problem: Problem, options: SegmenterOptions, build: Build = build_unet) -> None:
        self.problem = problem
        self.options = options
        self.build = build

    def fit(self, training_set: TrainingSet, steps: int, seed: int, name: str) -> None:
        """See `train_segmenter`."""
        num_classes = self.problem.schema.num_classes
        self.net = train_segmenter(training_set, num_classes, self.options, steps, seed, name, self.build)

    def predict(self, case: ModelCase) -> NDArray[np.uint8]:
        """Class indices (X, Y, Z) on the scan's own grid; see `compute_logits` for the errors."""
        return self.problem.preprocessing.invert_label(self.segment(case.image), case.placement)

    def probabilities(self, case: ModelCase) -> NDArray[np.float32]:
        """Probability of every class, (num_classes, X, Y, Z), on the scan's own grid."""
        return self.problem.preprocessing.invert_probabilities(self.soft_label(case.image)[1:], case.placement)

    def segment(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Class indices (X, Y, Z) of an image (M, X, Y, Z) in model space; see `compute_logits` for the errors."""
        if self.options.mirror:
            return self.soft_label(image).argmax(axis=0).astype(np.uint8)
        return segment(self.net, np.array(image))

    def soft_label(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of every class (num_classes, X, Y, Z) for an image (M, X, Y, Z) in model space.

        With `mirror`, probabilities are averaged over the image and its mirror images.
        """
        volume = torch.from_numpy(np.array(image))
        shares = compute_logits(self.net, volume).float().softmax(0)
        axes = mirror_axes(self.problem.schema) if self.options.mirror else ()
        for axis in axes:
            mirrored = compute_logits(self.net, volume.flip(axis + 1)).float().softmax(0)
            shares = shares + mirrored.flip(axis + 1)
        return (shares / (len(axes) + 1)).cpu().numpy()

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean features of the coarsest level, (channels[-1],)."""
        return encode(self.net, np.array(image))

    def save(self, path: Path) -> None:
        """See `save_segmenter`."""
        save_segmenter(self.net, path)

    def load(self, path: Path) -> None:
        """See `load_segmenter`."""
        schema, modalities = self.problem.schema, self.problem.modalities
        self.net = load_segmenter(path, len(modalities), schema.num_classes, self.options.channels, self.build)


def dice_and_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Soft Dice over the batch, averaged over foreground classes, plus mean cross-entropy; ignored voxels do not count.

    Args:
        logits: (B, num_classes, X, Y, Z).
        label: (B, X, Y, Z) int64 class indices or IGNORE.
    """
    known = label != IGNORE
    shares = logits.softmax(1) * known[:, None]
    dice = DiceLoss(include_background=False, batch=True)(shares, one_hot(label, logits.shape[1]).float())
    # torch's own mean is NaN if every voxel is ignored.
    summed = cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum")
    return dice + summed / known.sum().clamp(min=1)


def soft_dice_and_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """`dice_and_cross_entropy` with probabilities as labels; equal to it if all probabilities and weights are 0 or 1.

    Args:
        logits: (B, num_classes, X, Y, Z).
        target: probabilities (B, num_classes, X, Y, Z).
        weight: weights of the voxels, (B, X, Y, Z) in 0..1.
    """
    shares = logits.softmax(1) * weight[:, None]
    dice = DiceLoss(include_background=False, batch=True)(shares, target * weight[:, None])
    summed = -(target * logits.log_softmax(1)).sum(1) * weight
    return dice + summed.sum() / weight.sum().clamp(min=1)


def batch_loss(output: Tensor | Sequence[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of a batch.

    Args:
        output: logits (B, num_classes, X, Y, Z); with deep supervision, such logits for every level, where each level
            counts half as much as the one before.
        batch: holds `label`, or `soft` and `weight` (`medaug.segmentation.batches`).
    """
    levels = [output] if isinstance(output, Tensor) else list(output)
    losses = [
        soft_dice_and_cross_entropy(logits.float(), batch["soft"], batch["weight"])
        if "soft" in batch
        else dice_and_cross_entropy(logits.float(), batch["label"])
        for logits in levels
    ]
    weights = [0.5**level for level in range(len(levels))]
    total = sum(weights)
    return torch.stack([loss * (weight / total) for loss, weight in zip(losses, weights, strict=True)]).sum()


def train_segmenter(
    training_set: TrainingSet,
    num_classes: int,
    options: SegmenterOptions,
    steps: int,
    seed: int,
    name: str,
    build: Build = build_unet,
) -> nn.Module:
    """Train a segmenter; the same arguments give the same segmenter on the same machine.

    Args:
        training_set: what to train on.
        num_classes: number of classes, including background.
        options: size of the network, learning rate and batch size.
        steps: number of optimisation steps, over which the learning rate decays as a cosine.
        seed: seed of weights, order and augmentation.
        name: label of the progress bar.
        build: function that makes the untrained network.

    Raises:
        UserError: the training diverged.
    """
    device = choose_device()
    with torch.random.fork_rng():
        torch.manual_seed(named_seed(seed, "segmenter weights"))
        net = build(training_set.num_modalities, num_classes, options.channels).to(device)
    averaged = copy.deepcopy(net) if options.ema else None
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    source = training_batches(training_set, options.batch_size, num_classes, steps, seed)
    batches = iter(make_loader(source, StepsFrom(0, steps), options.num_workers))
    for step in track(range(steps), name):
        batch = {key: value.to(device) for key, value in next(batches).items() if key in TRAINED_ON}
        with _autocast(net, batch["image"]):
            output = net(batch["image"])
        loss = batch_loss(output, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if averaged is not None:
            _average(averaged, net, options.ema, step)
        if not torch.isfinite(loss):
            raise _diverged(name, options, step + 1)
        if (step + 1) % 200 == 0:
            log.info("%s: step %d of %d, loss %.3f", name, step + 1, steps, loss.item())
    if not_finite(net.state_dict()) is not None:
        raise _diverged(name, options, steps)
    return (net if averaged is None else averaged).eval()


@torch.no_grad()
def _average(averaged: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones, faster during the first steps."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(averaged.parameters(), net.parameters(), strict=True):
        old.lerp_(new, share)


def _diverged(name: str, options: SegmenterOptions, step: int) -> UserError:
    return UserError(
        f"{name}: its loss or a weight is NaN or infinite at step {step}: the training has diverged",
        f"lower segmenter.learning_rate={options.learning_rate:g}",
    )


def _autocast(net: nn.Module, image: Tensor) -> torch.autocast:
    """Autocast to bfloat16 for images (B, M, X, Y, Z), if the device computes this network correctly in it."""
    halvings = sum(stride > 1 for stride in getattr(net, "strides", ()))
    coarsest = [-(-side // 2**halvings) for side in image.shape[2:]]
    first, last = ([side * 2**level for level in range(halvings + 1)] for side in (coarsest[0], coarsest[2]))
    bf16 = has_bf16(image.device) and sound_in_bf16(image.device, first if net.training else (), last[:-1])
    return torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16)


@torch.no_grad()
def compute_logits(net: nn.Module, image: NDArray | Tensor) -> Tensor:
    """Logits (num_classes, X, Y, Z) of an image (M, X, Y, Z) in model space.

    Raises:
        UserError: the network's output is NaN or infinite.
    """
    device = next(net.parameters()).device
    batch = torch.as_tensor(image)[None].to(device)
    with _autocast(net, batch):
        logits = net(batch)
    if not_finite(logits) is not None:
        raise UserError(
            "a segmenter's output is NaN or infinite: its training has diverged", "lower segmenter.learning_rate"
        )
    return logits[0]


def segment(net: nn.Module, image: NDArray | Tensor) -> NDArray[np.uint8]:
    """Class indices (X, Y, Z) uint8 of an image (M, X, Y, Z) in model space; see `compute_logits` for the errors."""
    return compute_logits(net, image).argmax(0).to(torch.uint8).cpu().numpy()


@torch.no_grad()
def encode(net: nn.Module, image: NDArray | Tensor, cells: int = 1) -> NDArray[np.float32]:
    """Features of an image (M, X, Y, Z) in model space: the mean of the coarsest level, (channels[-1],).

    With more than one cell along each axis, the mean of each cell: (channels[-1] * cells^3,).
    """
    device = next(net.parameters()).device
    bottom: nn.Module = getattr(net, "bottleneck", net)
    while inner := [child for child in bottom.modules() if hasattr(child, "submodule")]:
        bottom = inner[0].get_submodule("submodule")  # what the skip connection bypasses
    kept: list[Tensor] = []
    hook = bottom.register_forward_hook(lambda module, inputs, output: kept.append(output))
    batch = torch.as_tensor(image)[None].to(device)
    with _autocast(net, batch):
        net(batch)
    hook.remove()
    features = kept[0].float()
    means = features.mean((2, 3, 4)) if cells == 1 else adaptive_avg_pool3d(features, cells)
    return means[0].flatten().cpu().numpy()


def save_segmenter(net: nn.Module, path: Path) -> None:
    """Write the weights atomically."""
    # Serialise in memory first: torch.save's disk-full error cannot be distinguished from a bug.
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_segmenter(
    path: Path, num_modalities: int, num_classes: int, channels: Sequence[int], build: Build = build_unet
) -> nn.Module:
    """Read what `save_segmenter` wrote, and move it to the GPU if there is one.

    Raises:
        UserError: the file is damaged, the network in it has another size, or a weight is NaN or infinite.
    """
    net = build(num_modalities, num_classes, channels)
    remedy = "remove it; the segmenter is then trained again"
    weights = read_archive(path, "segmenter", remedy)
    load_weights(net, weights, path, remedy)
    if (name := not_finite(net.state_dict())) is not None:
        raise UserError(f"{name} holds NaN or infinite values", remedy, path=path)
    return net.to(choose_device()).eval()
