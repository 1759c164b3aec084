"""Estimates the time and memory of a training before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from medaug.options import CodecOptions, TrainerOptions
from medaug.progress import duration
from medaug.training.data import TrainingData
from medaug.training.hardware import device_type, world_size
from medaug.training.model import DiffusionModel, Dropout
from medaug.training.module import NOISE_LEVELS, PICTURE_STEPS, PICTURED, make_optimizer, training_batches

STATE_BYTES = 20
"""Bytes per trained parameter, in float32: the weight, its gradient, AdamW's two moments, its average."""

FROZEN_BYTES = 8
"""Bytes per frozen weight (a ControlNet's base, a codec): the weight and its copy in the averaged model."""

MEASURED_STEPS, MEASURED_SECONDS = 3, 20.0


@dataclass(frozen=True)
class Plan:
    """Size, time and memory of a training.

    Attributes:
        subjects, scans, labelled: number of subjects, scans and labelled scans in one epoch.
        shape: the model's grid, voxels.
        patch: voxels of the patches that the model is trained on; None: it is trained on whole volumes.
        slices: axial slices of an epoch for a 2D network; None for a 3D network.
        steps: optimisation steps.
        step_samples: samples per step, on all devices together.
        parameters: number of parameters of the network.
        step_seconds: seconds per step, with all passes of `trainer.accumulate`.
        validation_seconds: seconds of all validations of the run, with their pictures.
        memory: minimum bytes per device for a step: weights, optimiser state, and the activations saved for the
            backward pass. On a CPU the measured peak was 1.1 to 1.9 times that.
        activations: bytes of these activations.
        uncounted: what takes time but is not counted.
    """

    subjects: int
    scans: int
    labelled: int
    shape: tuple[int, ...]
    patch: tuple[int, ...] | None
    slices: int | None
    steps: int
    step_samples: int
    parameters: int
    step_seconds: float
    validation_seconds: float
    memory: int
    activations: int
    uncounted: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan as text, one string per line."""
        grid = "x".join(map(str, self.shape))
        slices = "" if self.slices is None else f", {self.slices} slices"
        if self.patch is not None:
            slices = f", a patch of {'x'.join(map(str, self.patch))} from each"
        training = self.steps * self.step_seconds
        return [
            f"an epoch: {self.scans} training scans ({self.labelled} labelled) of {self.subjects} subjects, "
            f"grid {grid}{slices}",
            f"planned: {self.steps} steps of {self.step_samples}, {self.steps * self.step_samples / self.scans:.1f} "
            f"passes over the training scans; {self.parameters / 1e6:.1f} M parameters",
            f"estimated time: {duration(training + self.validation_seconds)} ({self.step_seconds:.3g} s a step, "
            f"{duration(self.validation_seconds)} of it validation; not counted: {', '.join(self.uncounted)})",
            f"estimated memory: at least {self.memory / 2**30:.2f} GiB per device, without workspaces" + self._whole(),
        ]

    def _whole(self) -> str:
        """What whole volumes would need in place of patches."""
        if self.patch is None:
            return ""
        ratio = math.prod(self.shape) / math.prod(self.patch)
        whole = self.memory + (ratio - 1) * self.activations
        return f"; with whole volumes it would be {whole / 2**30:.2f} GiB"


def make_plan(data: TrainingData, budget: TrainerOptions, scored: bool = False) -> Plan:
    """Measure a few steps with a temporary model.

    The run is not affected: its model is another object, and no random state is used or changed.

    Args:
        data, budget: data and `trainer` options of the run.
        scored: whether the run scores samples.
    """
    card, train, val = data.card, data.train, data.val
    device = torch.device(device_type(budget))
    with torch.random.fork_rng(devices=[]):
        model = card.build().to(device)
    conditions = card.attributes, card.sliced, data.patches, model.field_of_view
    batches = training_batches(train, budget, 0, 1, *conditions)
    first = {key: value.to(device) for key, value in batches[0].items()}
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    codec_weights = sum(b.numel() for b in model.buffers())
    activations = saved_bytes(model, first, Dropout.of(budget))
    training, forward = _measure(model, first, budget)
    steps, world = budget.max_steps, world_size(budget)
    validations = steps // min(budget.validate_every, steps)
    denoised = len(val) * (1 + len(NOISE_LEVELS)) + min(PICTURED, len(val)) * 2 * PICTURE_STEPS
    split = world if budget.strategy == "fsdp" else 1
    codec = CodecOptions(**card.options["codec"])
    first_stage = codec.name == "kl" and codec.checkpoint is None and card.base is None
    return Plan(
        subjects=len(card.subjects["train"]),
        scans=len(train),
        labelled=sum(case.label is not None for case in train),
        shape=card.preprocessing.shape,
        patch=None if data.patches is None else data.patches.shape,
        slices=sum(len(range(case.image.shape[3])[case.slices]) for case in train) if card.sliced else None,
        steps=steps,
        step_samples=budget.batch_size * budget.accumulate * world,
        parameters=parameters,
        step_seconds=training * budget.accumulate,
        validation_seconds=validations * denoised * forward / budget.batch_size,
        memory=(STATE_BYTES * (parameters - frozen) + FROZEN_BYTES * frozen) // split
        + FROZEN_BYTES * codec_weights
        + activations,
        activations=activations,
        uncounted=(
            "reading",
            "communication",
            *(("the first stage of codec=kl",) if first_stage else ()),
            *(("scoring of samples",) if scored else ()),
            *(("training of the teachers",) if budget.pseudo_labels else ()),
        ),
    )


def saved_bytes(model: DiffusionModel, batch: dict[str, Tensor], dropout: Dropout) -> int:
    """Bytes that one forward pass saves for the backward pass, without the weights themselves."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(batch, dropout)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


def _measure(model: DiffusionModel, batch: dict[str, Tensor], budget: TrainerOptions) -> tuple[float, float]:
    """Seconds of one training step (forward, backward, optimiser), and of one forward pass without gradients."""
    optimizer, dropout = make_optimizer(model, budget), Dropout.of(budget)
    training: list[float] = []
    forward: list[float] = []
    begun = time.perf_counter()
    while len(training) <= MEASURED_STEPS and time.perf_counter() - begun < MEASURED_SECONDS:
        start = _now(batch)
        model.loss(batch, dropout).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), budget.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        middle = _now(batch)
        with torch.no_grad():
            model.loss(batch)
        training.append(middle - start)
        forward.append(_now(batch) - middle)
    return median(training[1:] or training), median(forward[1:] or forward)  # the first one warms up


def _now(batch: dict[str, Tensor]) -> float:
    if batch["image"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
