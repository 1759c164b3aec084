"""Codec, network and process in one module: the loss on one side, `denoise` on the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medaug.cohort.schema import foreground
from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.diffusion.guidance import NO_GUIDANCE, Guidance, guided
from medaug.diffusion.inpainting import Inpainting, draw
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.diffusion.process import add_noise, build_process, loss_weight, predicted_sample, training_target
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.networks.build import build_network
from medaug.networks.codec_table import build_codec
from medaug.networks.codecs import space_to_depth
from medaug.networks.condition import Condition, embed, embedded_channels, signed_planes
from medaug.networks.finite import not_finite
from medaug.options import TrainerOptions
from medaug.training.tasks import Task, resolve_task


@dataclass(frozen=True)
class Dropout:
    """Shares of the condition that training hides, each drawn per sample.

    Attributes:
        condition: of masks as a whole; of all images together in a task without masks. It trains the null condition.
        classes: of the classes of a mask, each by itself.
        images: of the given modalities, each by itself.
        attributes: of the attributes, each by itself.
    """

    condition: float = 0.0
    classes: float = 0.0
    images: float = 0.0
    attributes: float = 0.0

    @classmethod
    def of(cls, trainer: TrainerOptions) -> Dropout:
        """As the options say."""
        return cls(trainer.condition_dropout, trainer.class_dropout, trainer.image_dropout, trainer.attribute_dropout)


@dataclass(frozen=True)
class Context:
    """What is known of each sample of a batch beside its label map.

    Attributes:
        images: (B, num_images, X, Y, Z), see `Task.images_of`; None: the task has none.
        attributes: (B, A), see `AttributeEncoder`; None: all unknown.
        labelled: (B,) bool, which samples have a label; None: all. The others get the null condition.
    """

    images: Tensor | None = None
    attributes: Tensor | None = None
    labelled: Tensor | None = None


class DiffusionModel(nn.Module):
    """p(target | condition) in codec space, for instance p(image | mask).

    Args:
        options: plain `codec`, `network` and `process` nodes of the options, and `trainer` for its `region_weight`
            (1 where it is absent).
        num_modalities: channels of the image.
        num_classes: of the label map, with background.
        precision: of the network's matrix products: bf16, fp32, or auto (bf16 where the processor has it).
            Process, codec and loss are always computed in float32.
        task: what is drawn, from what; None: images of all modalities, from masks.
        attributes: that the model is told beside masks and images.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(
        self,
        options: dict[str, Any],
        num_modalities: int,
        num_classes: int,
        precision: str = "auto",
        task: Task | None = None,
        attributes: AttributeEncoder = NO_ATTRIBUTES,
    ) -> None:
        super().__init__()
        self.attributes: AttributeEncoder = attributes
        self.region_weight = float(options.get("trainer", {}).get("region_weight", 1.0))
        network = options["network"]
        self.task = task or resolve_task({}, [str(m) for m in range(num_modalities)], num_classes)
        self.precision = precision
        self.sliced = network["spatial_dims"] == 2
        try:
            self.process = build_process(**options["process"])
            self.codec = build_codec(options["codec"], self.task.num_targets, network["spatial_dims"])
            block = math.prod(self.codec.stride)
            planes = embedded_channels(self.task.num_masks + self.task.num_images, self.codec.stride)
            self.network = build_network(network, self.codec.channels, planes, attributes.size, block)
        except ValueError as error:
            raise UserError(f"codec, network and process do not go together: {error}") from error

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """What is to be drawn for a batch: (B, num_targets, X, Y, Z) in [-1, 1]."""
        return self.task.target_of(batch["image"], batch["label"])

    def condition(
        self,
        label: Tensor,
        known: Tensor,
        images: Tensor | None = None,
        images_known: Tensor | None = None,
        attributes: Tensor | None = None,
    ) -> Condition:
        """The condition in codec space.

        Args:
            label: (B, X, Y, Z) class indices or IGNORE; not looked at in a task without masks.
            known: (B, num_classes - 1), whether each class was looked for.
            images: (B, num_images, X, Y, Z), see `Task.images_of`; None where the task is given none.
            images_known: (B, num_images), whether each is there; None: all.
            attributes: (B, A), see `AttributeEncoder`; None: all unknown.
        """
        stride = self.codec.stride
        grid = [-(-side // s) for side, s in zip(label.shape[1:], stride, strict=True)]
        planes = [torch.zeros(len(label), 0, *grid, device=label.device)]
        if self.task.mask:
            planes.append(embed(signed_planes(label, self.task.num_classes), known, stride))
        if self.task.num_images:
            if images is None:
                raise ValueError(f"the task is given {self.task.num_images} image(s), and there are none")
            there = torch.ones(images.shape[:2], device=images.device) if images_known is None else images_known
            planes.append(embed(images, there, stride))
        told = planes[0].new_zeros(len(label), self.attributes.size) if attributes is None else attributes
        return Condition(torch.cat(planes, dim=1), told)

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output at x (B, C, ...), float32, whatever it is computed in.

        The network sees x and t as the process's schedule shows them.
        """
        schedule = self.process.schedule
        shown = schedule.input_scale(t).view(-1, *[1] * (x.ndim - 1)) * x
        dtype = self._reduced(x)
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            return self.network(shown, schedule.network_time(t), condition).float()

    def _reduced(self, x: Tensor) -> torch.dtype | None:
        """What the network computes x in; None: float32."""
        if self.precision == "fp16":
            return torch.float16 if x.device.type == "cuda" else None
        bf16 = self.precision == "bf16" or (self.precision == "auto" and has_bf16(x.device))
        first, last = (self.network.level_sides(side) for side in (x.shape[2], x.shape[4]))
        bf16 = bf16 and sound_in_bf16(x.device, first, last[2:])
        return torch.bfloat16 if bf16 else None

    def denoise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The model's x_0 at x_t = x (B, C, ...), all in codec space."""
        return predicted_sample(self.process, self.predict(x, t, condition), x, t)

    def loss(self, batch: dict[str, Tensor], dropout: Dropout = Dropout(), t: Tensor | None = None) -> Tensor:
        """Mean squared error of the prediction, times the process's weight of its time, per sample (B,).

        With a region weight w other than 1, positions in codec space whose block of voxels holds foreground count w
        times as much as the others in that mean; ignored voxels are no foreground, scans without a label have none.
        Where the label is drawn, positions whose block holds ignored voxels do not count. In 2D slices outside the scan
        do not count.

        Each sample's time, noise and what is hidden of its condition come from generators of its own, seeded by
        `batch["seed"]`. Scans without a label train the null condition.

        Args:
            batch: see `medaug.data.batches.TrainingBatches`.
            dropout: what is hidden of the condition.
            t: (B,) times to take in place of those that are drawn.
        """
        x0 = self.codec.encode(self.target(batch))
        draws = generators([named_seed(int(seed), "diffusion") for seed in batch["seed"]])
        kept = torch.stack([torch.rand((), generator=draw) >= dropout.condition for draw in draws]).to(x0.device)
        drawn = torch.cat([self.process.schedule.training_times(1, draw) for draw in draws]).to(x0.device)
        t = drawn if t is None else t
        noise = standard_normal(draws, x0.shape[1:], x0.device)
        condition = self._training_condition(batch, kept, dropout)
        output = self.predict(add_noise(self.process, x0, noise, t), t, condition)
        squares = (output - training_target(self.process, x0, noise, t)).square()
        if (weight := self._weights(batch)) is not None:
            squares = squares * weight / weight.flatten(1).mean(1).clamp(min=1e-8).view(-1, 1, 1, 1, 1)
        return loss_weight(self.process, t) * squares.flatten(1).mean(1)

    def _training_condition(self, batch: dict[str, Tensor], kept: Tensor, dropout: Dropout) -> Condition:
        """The condition of a batch with what is hidden of it; kept (B,): whether it is there at all."""

        def shown(name: str, share: float, number: int) -> Tensor:
            draws = generators([named_seed(int(seed), name) for seed in batch["seed"]])
            return torch.stack([torch.rand(number, generator=draw) >= share for draw in draws]).to(kept.device)

        known = (batch["labelled"] & kept)[:, None] & shown("classes", dropout.classes, self.task.num_classes - 1)
        there = shown("images", dropout.images, self.task.num_images) & (kept[:, None] | self.task.mask)
        told = None
        if "attributes" in batch:
            hidden = ~shown("attributes", dropout.attributes, len(self.attributes.attributes))
            told = self.attributes.hide(batch["attributes"], hidden)
        images = self.task.images_of(batch["image"], batch["seed"])
        return self.condition(batch["label"], known, images, there, told)

    def _weights(self, batch: dict[str, Tensor]) -> Tensor | None:
        """(B, 1, X/sx, Y/sy, Z/sz): what each position counts in the loss; None: all the same."""
        weight = None
        if self.region_weight != 1:
            labelled = batch["labelled"].view(-1, 1, 1, 1)
            held = self._holds(foreground(batch["label"]) & labelled)
            weight = 1 + (self.region_weight - 1) * held
        if (judged := self.task.judged(batch["label"])) is not None:
            clean = 1 - self._holds(~judged)
            weight = clean if weight is None else weight * clean
        if self.sliced and "inside" in batch:
            inside = batch["inside"].float()[:, None, None, None]
            weight = inside if weight is None else weight * inside
        return weight

    def _holds(self, voxels: Tensor) -> Tensor:
        """(B, 1, X/sx, Y/sy, Z/sz): 1 where a block holds any of the voxels (B, X, Y, Z) bool, else 0."""
        return space_to_depth(voxels[:, None].float(), self.codec.stride).amax(1, keepdim=True)

    @torch.no_grad()
    def sample(
        self,
        label: Tensor,
        seeds: Sequence[int],
        sampling: Sampling,
        guidance: Guidance = NO_GUIDANCE,
        context: Context = Context(),
        *,
        inpainting: Inpainting | None = None,
        watch: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        """Sample targets: (B, num_targets, X, Y, Z) in [-1, 1], for instance images for masks.

        Sample i depends on its condition and seeds[i] alone, not on its batch (to float rounding).

        Args:
            label: (B, X, Y, Z) class indices or IGNORE. The samples have its shape; a task without masks ignores its
                values.
            seeds: of the noise, one per sample.
            sampling: sampler, steps and spacing.
            guidance: strength of the guidance. It leads away from the same mask with the classes `negative` made
                background, or without them from the null condition: no mask, or in a task without masks no images.
            context: what is known of each sample beside its label map, in both branches of guidance.
            inpainting: the known part of the targets, which the samples equal outside its region; None: nothing.
            watch: called at each evaluation with its time and the expected x_0 there, in the form of the result.

        Raises:
            ValueError: what `Sampling.check` refuses, and images where the task needs them.
            UserError: an unknown sampler or spacing; the samples are NaN or infinite.
        """
        sampling.check(self.process)
        condition, negative = self._sampling_conditions(label, guidance, context)
        denoise = guided(self.denoise, condition, negative, guidance)

        def decode(code: Tensor) -> Tensor:
            return self.codec.decode(code, label.shape[1:])

        if inpainting is not None:
            denoise = inpainting.impose(denoise, self.codec.encode, decode)
        draws = generators(seeds)
        shape = (self.codec.channels, *condition.planes.shape[2:])

        def noise() -> Tensor:
            return standard_normal(draws, shape, label.device)

        def watched(x: Tensor, t: Tensor) -> Tensor:
            x0 = denoise(x, t)
            if watch is not None:
                watch(float(t[0]), decode(x0).clamp(-1, 1))
            return x0

        resample = 1 if inpainting is None else inpainting.resample
        samples = decode(draw(sampling, watched, self.process, noise, resample)).clamp(-1, 1)
        if not_finite(samples) is not None:
            raise UserError(
                "the model's samples hold NaN or infinite values",
                "lower the guidance scale, or train it again with a lower trainer.learning_rate",
            )
        return samples if inpainting is None else inpainting.paste(samples)

    def _sampling_conditions(self, label: Tensor, guidance: Guidance, context: Context) -> tuple[Condition, Condition]:
        """The condition of the samples, and the condition that guidance leads away from."""
        images, attributes = context.images, context.attributes
        known = torch.ones(len(label), self.task.num_classes - 1, device=label.device)
        if context.labelled is not None:
            known *= context.labelled[:, None]
        condition = self.condition(label, known, images, None, attributes)
        if guidance.negative:
            removed = torch.isin(label, torch.tensor(guidance.negative, device=label.device))
            return condition, self.condition(label.masked_fill(removed, 0), known, images, None, attributes)
        present = None if images is None else images.new_full(images.shape[:2], float(self.task.mask))
        return condition, self.condition(label, torch.zeros_like(known), images, present, attributes)


def sound_in_bf16(device: torch.device, first_sides: Iterable[int], halved_last_sides: Iterable[int] = ()) -> bool:
    """Whether 3-D convolutions of volumes with these sides, one per level, can be computed in bfloat16 there.

    On processors torch 2.13 computes the weight gradient from memory that nobody wrote where the first side is 2, and
    so the output of a convolution with stride 2 where its last side is 1.

    Args:
        device: that computes.
        first_sides: of the volumes of all levels.
        halved_last_sides: of what convolutions with stride 2 give.
    """
    return device.type != "cpu" or (2 not in first_sides and 1 not in halved_last_sides)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there, and are not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
