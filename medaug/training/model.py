"""The diffusion model: codec, network and process in one module, with the training loss and the sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medaug.cohort.schema import foreground
from medaug.data.attributes import NO_ATTRIBUTES, AttributeEncoder
from medaug.diffusion.guidance import NO_GUIDANCE, Guidance, guided
from medaug.diffusion.inpainting import Inpainting, sample_from_noise
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.diffusion.process import add_noise, build_process, loss_weight, predicted_sample, training_target
from medaug.diffusion.samplers import Denoise, Sampling
from medaug.diffusion.windows import Shape, divided
from medaug.errors import UserError
from medaug.networks.build import build_network
from medaug.networks.codec_table import build_codec
from medaug.networks.codecs import space_to_depth
from medaug.networks.condition import Condition, embed, embed_field_of_view, embedded_channels, signed_planes
from medaug.networks.finite import not_finite
from medaug.options import TrainerOptions
from medaug.training.tasks import Task, resolve_task
from medaug.training.windowed import Inputs, WindowedModel

Decode = Callable[[Tensor], Tensor]  # code (B, C, ...) -> image (B, M, X, Y, Z)


@dataclass(frozen=True)
class Dropout:
    """Probabilities with which training hides parts of the condition, independently for each sample.

    Attributes:
        condition: hides the whole mask, or in a task without masks all images. This trains the null condition.
        classes: hides each class of a mask.
        images: hides each image of the condition.
        attributes: hides each attribute.
    """

    condition: float = 0.0
    classes: float = 0.0
    images: float = 0.0
    attributes: float = 0.0

    @classmethod
    def of(cls, trainer: TrainerOptions) -> Dropout:
        """The probabilities in the `trainer` options."""
        return cls(trainer.condition_dropout, trainer.class_dropout, trainer.image_dropout, trainer.attribute_dropout)


@dataclass(frozen=True)
class Context:
    """What is known about each sample of a batch, apart from its label map.

    Attributes:
        images: (B, num_images, X, Y, Z), see `Task.images_of`; None if the task has none.
        attributes: (B, A), see `AttributeEncoder`; None: all unknown.
        labelled: (B,) bool, which samples have a label; None: all. The others get the null condition.
        place: (B, 6), where patches lie in whole volumes, see `medaug.diffusion.windows.place`; None: whole volumes.
        field_of_view: (B, X, Y, Z) bool, which voxels lie in the scan (`network.field_of_view`); None: all.
    """

    images: Tensor | None = None
    attributes: Tensor | None = None
    labelled: Tensor | None = None
    place: Tensor | None = None
    field_of_view: Tensor | None = None

    def on(self, device: str) -> Context:
        """The same on a device."""
        return Context(*(None if part is None else part.to(device) for part in vars(self).values()))


class DiffusionModel(nn.Module):
    """p(target | condition) in codec space, for instance p(image | mask).

    Args:
        options: the `codec`, `network` and `process` options as plain dictionaries, `trainer` for its `region_weight`
            (1 if absent), and `data` for its `patch` (none if absent). A network of patches is told where each lies.
        num_modalities: number of channels of the image.
        num_classes: number of classes of the label map, with background.
        precision: precision of the network: fp32, bf16, fp16 (on CUDA), or auto (bf16 if the hardware supports it).
            Process, codec and loss are always computed in float32.
        task: what is generated and from what; None: images of all modalities, from masks.
        attributes: encoder of the attributes that are part of the condition.

    Raises:
        UserError: options that do not work together.
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
        patch, network = options.get("data", {}).get("patch"), dict(options["network"])
        self.patch: Shape | None = None if patch is None else (patch[0], patch[1], patch[2])
        self.field_of_view = bool(network.pop("field_of_view", False))
        if self.patch is not None:
            network["coordinates"] = True
        self.task = task or resolve_task({}, [str(m) for m in range(num_modalities)], num_classes)
        self.precision = precision
        self.sliced = network["spatial_dims"] == 2
        try:
            self.process = build_process(**options["process"])
            self.codec = build_codec(options["codec"], self.task.num_targets, network["spatial_dims"])
            block = math.prod(self.codec.stride)
            planes = embedded_channels(self.task.num_masks + self.task.num_images, self.codec.stride)
            planes += block * self.field_of_view
            self.network = build_network(network, self.codec.channels, planes, attributes.size, block)
        except ValueError as error:
            raise UserError(f"codec, network and process do not work together: {error}") from error

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """The volumes that the model learns to generate for a batch: (B, num_targets, X, Y, Z) in [-1, 1]."""
        return self.task.target_of(batch["image"], batch["label"])

    def condition(
        self,
        label: Tensor,
        known: Tensor,
        images: Tensor | None = None,
        images_known: Tensor | None = None,
        attributes: Tensor | None = None,
        field_of_view: Tensor | None = None,
        soft: Tensor | None = None,
    ) -> Condition:
        """The condition in codec space.

        Args:
            label: (B, X, Y, Z) class indices or IGNORE; unused in a task without masks.
            known: (B, num_classes - 1), 1 if the class is known, else 0.
            images: (B, num_images, X, Y, Z), see `Task.images_of`; None if the task has none.
            images_known: (B, num_images), 1 if the image is known, else 0; None: all are known.
            attributes: (B, A), see `AttributeEncoder`; None: all unknown.
            field_of_view: (B, X, Y, Z) bool, which voxels lie in the scan; None: all.
            soft: (B, num_classes - 1, X, Y, Z) in [-1, 1], the mask in place of the label's `signed_planes`.

        Raises:
            ValueError: the task needs images, and there are none.
        """
        stride = self.codec.stride
        grid = [-(-side // s) for side, s in zip(label.shape[1:], stride, strict=True)]
        planes = [torch.zeros(len(label), 0, *grid, device=label.device)]
        if self.task.mask:
            masks = signed_planes(label, self.task.num_classes) if soft is None else soft
            planes.append(embed(masks, known, stride))
        if self.task.num_images:
            if images is None or not images.shape[1]:
                raise ValueError(f"the task needs {self.task.num_images} image(s) as its condition, and there are none")
            present = torch.ones(images.shape[:2], device=images.device) if images_known is None else images_known
            planes.append(embed(images, present, stride))
        if self.field_of_view:
            inside = torch.ones_like(label, dtype=torch.bool) if field_of_view is None else field_of_view
            planes.append(embed_field_of_view(inside, stride))
        if attributes is None:
            attributes = planes[0].new_zeros(len(label), self.attributes.size)
        return Condition(torch.cat(planes, dim=1), attributes)

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output at x (B, C, ...), float32 whatever the precision of the network.

        The schedule scales x and t before the network gets them.
        """
        schedule = self.process.schedule
        scaled = schedule.input_scale(t).view(-1, *[1] * (x.ndim - 1)) * x
        dtype = self._autocast_dtype(x)
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            return self.network(scaled, schedule.network_time(t), condition).float()

    def _autocast_dtype(self, x: Tensor) -> torch.dtype | None:
        """The reduced precision in which the network processes x; None: float32."""
        if self.precision == "fp16":
            return torch.float16 if x.device.type == "cuda" else None
        bf16 = self.precision == "bf16" or (self.precision == "auto" and has_bf16(x.device))
        first, last = (self.network.level_sides(side) for side in (x.shape[2], x.shape[4]))
        bf16 = bf16 and sound_in_bf16(x.device, first, last[2:])
        return torch.bfloat16 if bf16 else None

    def denoise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The model's estimate of x_0 given x_t = x (B, C, ...); both are in codec space."""
        return predicted_sample(self.process, self.predict(x, t, condition), x, t)

    def loss(self, batch: dict[str, Tensor], dropout: Dropout = Dropout(), t: Tensor | None = None) -> Tensor:
        """Mean squared error of the prediction, times the process's loss weight at its time, per sample (B,).

        With a region weight w other than 1, positions in codec space whose block of voxels contains foreground count w
        times as much as the others in that mean; ignored voxels and scans without a label have no foreground. If the
        target is the label, positions whose block contains ignored voxels do not count. With a 2D network, slices
        outside the scan do not count.

        Each sample has its own random generators, seeded by `batch["seed"]`, for its time, its noise and the dropout of
        its condition. Scans without a label train the null condition. With soft labels of teachers (`SoftBatches`),
        positions count as much as the teachers are trusted in their block, and scans by their `scan_trust`, unless the
        whole condition is hidden.

        Args:
            batch: see `medaug.data.batches.TrainingBatches` and `SoftBatches`.
            dropout: probabilities with which parts of the condition are hidden.
            t: (B,) times to use instead of random ones.
        """
        x0 = self.codec.encode(self.target(batch))
        draws = generators([named_seed(int(seed), "diffusion") for seed in batch["seed"]])
        kept = torch.stack([torch.rand((), generator=draw) >= dropout.condition for draw in draws]).to(x0.device)
        # Sampled even if t is given: the noise that follows from the same generators must not depend on it.
        random_times = torch.cat([self.process.schedule.training_times(1, draw) for draw in draws]).to(x0.device)
        t = random_times if t is None else t
        noise = standard_normal(draws, x0.shape[1:], x0.device)
        condition = self._training_condition(batch, kept, dropout)
        output = self.predict(add_noise(self.process, x0, noise, t), t, condition)
        squares = (output - training_target(self.process, x0, noise, t)).square()
        if (weight := self._weights(batch, kept)) is not None:
            squares = squares * weight / weight.flatten(1).mean(1).clamp(min=1e-8).view(-1, 1, 1, 1, 1)
        losses = loss_weight(self.process, t) * squares.flatten(1).mean(1)
        return losses * torch.where(kept, batch["scan_trust"], 1) if "scan_trust" in batch else losses

    def _training_condition(self, batch: dict[str, Tensor], kept: Tensor, dropout: Dropout) -> Condition:
        """The condition of a batch after dropout; kept (B,) is false where the whole condition is hidden."""

        def shown(name: str, share: float, number: int) -> Tensor:
            draws = generators([named_seed(int(seed), name) for seed in batch["seed"]])
            return torch.stack([torch.rand(number, generator=draw) >= share for draw in draws]).to(kept.device)

        known = (batch["labelled"] & kept)[:, None] & shown("classes", dropout.classes, self.task.num_classes - 1)
        images_known = shown("images", dropout.images, self.task.num_images) & (kept[:, None] | self.task.mask)
        attributes = None
        if "attributes" in batch:
            hidden = ~shown("attributes", dropout.attributes, len(self.attributes.attributes))
            attributes = self.attributes.hide(batch["attributes"], hidden)
        images = self.task.images_of(batch["image"], batch["seed"])
        soft, inside = batch.get("soft"), batch.get("field_of_view")
        condition = self.condition(batch["label"], known, images, images_known, attributes, inside, soft)
        return condition._replace(place=batch["place"]) if "place" in batch else condition

    def _weights(self, batch: dict[str, Tensor], kept: Tensor) -> Tensor | None:
        """Weights (B, 1, X/sx, Y/sy, Z/sz) of the positions in the loss; None: all have the same weight.

        kept (B,) is false where the whole condition is hidden.
        """
        weight = None
        if self.region_weight != 1:
            labelled = batch["labelled"].view(-1, 1, 1, 1)
            in_region = self._block_contains(foreground(batch["label"]) & labelled)
            weight = 1 + (self.region_weight - 1) * in_region
        if (known_voxels := self.task.known_voxels(batch["label"])) is not None:
            known = 1 - self._block_contains(~known_voxels)
            weight = known if weight is None else weight * known
        if self.sliced and "inside" in batch:
            inside = batch["inside"].float()[:, None, None, None]
            weight = inside if weight is None else weight * inside
        if "trust" in batch:
            trust = space_to_depth(batch["trust"][:, None], self.codec.stride).mean(1, keepdim=True)
            trust = torch.where(kept.view(-1, 1, 1, 1, 1), trust, 1)
            weight = trust if weight is None else weight * trust
        return weight

    def _block_contains(self, voxels: Tensor) -> Tensor:
        """(B, 1, X/sx, Y/sy, Z/sz): 1 if the block contains any of the voxels (B, X, Y, Z) bool, else 0."""
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

        Sample i depends on its condition and seeds[i] alone, and apart from float rounding not on its batch. A model of
        patches samples whole volumes by windows that overlap by `sampling.overlap` (`WindowedModel`); then the volumes
        are in main memory, on whichever device the model is.

        Args:
            label: (B, X, Y, Z) class indices or IGNORE, on the grid of the samples; a task without masks ignores them.
            seeds: seed of the noise of each sample.
            sampling: sampler, steps and spacing.
            guidance: guidance away from the same mask with the `negative` classes set to background. Without negative
                classes it moves away from the null condition: no mask, or in a task without masks no images.
            context: what else is known about each sample; both branches of guidance get it.
            inpainting: the known part of the targets and the region to inpaint; outside the region the samples equal
                the known part. None: no inpainting.
            watch: called at each evaluation of the network with its time and the current estimate of the result.

        Raises:
            ValueError: as for `Sampling.check`; or images are missing that the task needs.
            UserError: an unknown sampler or spacing; or the samples are NaN or infinite.
        """
        sampling.check(self.process)
        if self.patch is not None and context.place is None:
            label, context = label.to("cpu", torch.uint8), context.on("cpu")
            inpainting = None if inpainting is None else inpainting.on("cpu")
            denoise, decode = self._of_windows(label, sampling, guidance, context, inpainting)
        else:
            denoise, decode = self._of_whole(label, sampling, guidance, context, inpainting)
        shape = (self.codec.channels, *self._grid(label))
        draws = generators(seeds)

        def noise() -> Tensor:
            return standard_normal(draws, shape, label.device)

        def watched(x: Tensor, t: Tensor) -> Tensor:
            x0 = denoise(x, t)
            if watch is not None:
                watch(float(t[0]), decode(x0).clamp(-1, 1))
            return x0

        resample = 1 if inpainting is None else inpainting.resample
        samples = decode(sample_from_noise(sampling, watched, self.process, noise, resample)).clamp(-1, 1)
        if not_finite(samples) is not None:
            raise UserError(
                "the model's samples contain NaN or infinite values",
                "lower the guidance scale, or train the model again with a lower trainer.learning_rate",
            )
        return samples if inpainting is None else inpainting.paste(samples)

    def _grid(self, label: Tensor) -> Shape:
        """The sides in codec space of volumes like a label (B, X, Y, Z)."""
        x, y, z = (-(-side // s) for side, s in zip(label.shape[1:], self.codec.stride, strict=True))
        return x, y, z

    def _of_whole(
        self, label: Tensor, sampling: Sampling, guidance: Guidance, context: Context, inpainting: Inpainting | None
    ) -> tuple[Denoise, Decode]:
        """Denoiser and decoder of volumes that the network gets as they are."""
        if sampling.overlap is not None:
            raise ValueError("overlap has no effect, because the network gets whole volumes; leave it out")
        conditions = [self.condition(*inputs) for inputs in self._inputs(label, guidance, context)]
        if context.place is not None:
            conditions = [condition._replace(place=context.place) for condition in conditions]
        denoise = guided(self.denoise, conditions[0], conditions[1], guidance)
        decode = partial(self.codec.decode, shape=label.shape[1:])
        return denoise if inpainting is None else inpainting.impose(denoise, self.codec.encode, decode), decode

    def _of_windows(
        self, label: Tensor, sampling: Sampling, guidance: Guidance, context: Context, inpainting: Inpainting | None
    ) -> tuple[Denoise, Decode]:
        """Denoiser and decoder of volumes that the network gets by windows; everything given is in main memory."""
        assert self.patch is not None
        windows = sampling.windows(self._grid(label), divided(self.patch, self.codec.stride))
        windowed = WindowedModel(windows, self.codec, self.condition, self.denoise, inpainting)
        denoise = guided(windowed.denoise, *self._inputs(label, guidance, context), guidance)
        decode = partial(windowed.decode, shape=label.shape[1:])
        return denoise if inpainting is None else inpainting.impose(denoise, windowed.encode, decode), decode

    def _inputs(self, label: Tensor, guidance: Guidance, context: Context) -> tuple[Inputs, Inputs]:
        """What the model is told about the samples, and what guidance moves away from."""
        images, attributes = context.images, context.attributes
        images = torch.zeros(len(label), 0, *label.shape[1:], device=label.device) if images is None else images
        if attributes is None:
            attributes = torch.zeros(len(label), self.attributes.size, device=label.device)
        known = torch.ones(len(label), self.task.num_classes - 1, device=label.device)
        if context.labelled is not None:
            known *= context.labelled[:, None]
        inside = torch.ones_like(label, dtype=torch.bool) if context.field_of_view is None else context.field_of_view
        inputs = Inputs(label, known, images, images.new_ones(images.shape[:2]), attributes, inside)
        if guidance.negative:
            removed = torch.isin(label, torch.tensor(guidance.negative, device=label.device))
            return inputs, inputs._replace(label=label.masked_fill(removed, 0))
        present = images.new_full(images.shape[:2], float(self.task.mask))
        return inputs, inputs._replace(known=torch.zeros_like(known), images_known=present)


def sound_in_bf16(device: torch.device, first_sides: Iterable[int], halved_last_sides: Iterable[int] = ()) -> bool:
    """Whether 3D convolutions give correct results in bfloat16 on a device, for volumes of these sizes.

    On CPUs, torch 2.13 reads uninitialised memory in two cases: in the weight gradient if the first side is 2, and in
    a convolution with stride 2 if the last side of its output is 1.

    Args:
        device: the device that computes.
        first_sides: first side of the volumes at each level.
        halved_last_sides: last side of the outputs of the convolutions with stride 2.
    """
    return device.type != "cpu" or (2 not in first_sides and 1 not in halved_last_sides)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 matrix products in hardware, without emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
