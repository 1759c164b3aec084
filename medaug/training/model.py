"""Codec, network and process in one module: the loss on one side, `denoise` on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medaug.cohort.schema import IGNORE
from medaug.diffusion.guidance import guided
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.diffusion.process import Process, add_noise, loss_weight, predicted_sample, training_target
from medaug.diffusion.samplers import check, sample, spaced_times
from medaug.errors import UserError
from medaug.networks.codecs import Codec, space_to_depth
from medaug.networks.condition import condition_channels, embed_mask
from medaug.networks.unet import ConcatUNet

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


class DiffusionModel(nn.Module):
    """p(image | mask) in codec space.

    Args:
        options: plain `codec`, `network` and `process` nodes of the options, and `trainer` for its `region_weight`
            (1 where it is absent).
        num_modalities: channels of the image.
        num_classes: of the label map, with background.
        precision: of the network's matrix products: bf16, fp16 (on CUDA, elsewhere fp32), fp32, or auto (bf16 where
            the processor has it). Process, codec and loss are always computed in float32.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(self, options: dict[str, Any], num_modalities: int, num_classes: int, precision: str = "auto") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"trainer.precision={precision}: not one of {', '.join(PRECISIONS)}")
        self.region_weight = float(options.get("trainer", {}).get("region_weight", 1.0))
        if self.region_weight <= 0:
            raise UserError(f"trainer.region_weight={self.region_weight:g}: must be above 0; 1 weighs all alike")
        network = options["network"]
        self.num_classes = num_classes
        self.levels_3d = len(network["channels"]) if network["spatial_dims"] == 3 else 0
        self.precision = precision
        try:
            self.process = Process(**options["process"])
            self.codec = Codec(options["codec"]["name"], num_modalities, network["spatial_dims"])
            self.network = ConcatUNet(
                in_channels=self.codec.channels,
                condition_channels=condition_channels(num_classes, self.codec.stride),
                **network,
            )
        except ValueError as error:
            raise UserError(f"codec, network and process do not go together: {error}") from error

    def condition(self, label: Tensor, known: Tensor) -> Tensor:
        """Condition in codec space from label (B, X, Y, Z) and known (B, num_classes - 1), see `embed_mask`."""
        return embed_mask(label, known, self.num_classes, self.codec.stride)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
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
        bf16 = bf16 and sound_in_bf16(x.device, [x.shape[2] >> level for level in range(self.levels_3d)])
        return torch.bfloat16 if bf16 else None

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The model's x_0 at x_t = x (B, C, ...), all in codec space."""
        return predicted_sample(self.process, self.predict(x, t, condition), x, t)

    def loss(self, batch: dict[str, Tensor], condition_dropout: float, t: Tensor | None = None) -> Tensor:
        """Mean squared error of the prediction, times the process's weight of its time, per sample (B,).

        With a region weight w other than 1, positions in codec space whose block of voxels holds foreground count w
        times as much as the others in that mean; ignored voxels are no foreground, scans without a label have none.

        Each sample's time, noise and condition dropout come from a generator of its own, seeded by `batch["seed"]`.
        Scans without a label train the null condition, as does a share `condition_dropout` of the others.
        Given times t (B,) take the place of drawn ones; the noise stays.
        """
        x0 = self.codec.encode(batch["image"])
        draws = generators([named_seed(int(seed), "diffusion") for seed in batch["seed"]])
        kept = torch.stack([torch.rand((), generator=draw) >= condition_dropout for draw in draws])
        drawn = torch.cat([self.process.training_times(1, draw) for draw in draws]).to(x0.device)
        t = drawn if t is None else t
        noise = standard_normal(draws, x0.shape[1:], x0.device)
        known = (batch["labelled"] & kept.to(x0.device))[:, None].expand(-1, self.num_classes - 1)
        output = self.predict(add_noise(self.process, x0, noise, t), t, self.condition(batch["label"], known))
        target = training_target(self.process, x0, noise, t)
        squares = (output - target).square()
        if self.region_weight != 1:
            weight = self._region_weights(batch["label"], batch["labelled"])
            squares = squares * weight / weight.flatten(1).mean(1).view(-1, 1, 1, 1, 1)
        return loss_weight(self.process, t) * squares.flatten(1).mean(1)

    def _region_weights(self, label: Tensor, labelled: Tensor) -> Tensor:
        """(B, 1, X/sx, Y/sy, Z/sz): `region_weight` where a block holds foreground, else 1."""
        foreground = (label > 0) & (label != IGNORE) & labelled.view(-1, 1, 1, 1)
        held = space_to_depth(foreground[:, None].float(), self.codec.stride).amax(1, keepdim=True)
        return 1 + (self.region_weight - 1) * held

    @torch.no_grad()
    def sample(
        self,
        label: Tensor,
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        sampler: str,
        num_inference_steps: int,
        eta: float = 0.0,
        spacing: str = "trailing",
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        negative_classes: Sequence[int] = (),
        progress: Callable[[int], None] | None = None,
        watch: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        """Images for masks: label (B, X, Y, Z), see `embed_mask`, to (B, M, X, Y, Z) in [-1, 1].

        Sample i depends on label[i] and seeds[i] alone, not on the batch that it is made in (to float rounding).

        Args:
            label: class indices.
            seeds: of the noise, one per sample.
            guidance_scale, guidance_interval, guidance_rescale: see `guided`.
            sampler, num_inference_steps, eta, spacing: see `medaug.diffusion.samplers`.
            negative_classes: guidance leads away from the same mask with these classes made background; where there
                are none, from the null condition.
            progress: called after each step with the number of steps done.
            watch: called at each evaluation with its time and the x_0 that is expected there, as images like the
                result.

        Raises:
            ValueError: what `check` and `check_guidance` refuse.
        """
        check(self.process, sampler, spacing, eta)
        known = torch.ones(len(label), self.num_classes - 1, device=label.device)
        condition = self.condition(label, known)
        if negative_classes:
            removed = torch.isin(label, torch.tensor(negative_classes, device=label.device))
            negative = self.condition(label.masked_fill(removed, 0), known)
        else:
            negative = self.condition(label, torch.zeros_like(known))
        denoise = guided(self.denoise, condition, negative, guidance_scale, guidance_interval, guidance_rescale)
        draws = generators(seeds)
        shape = (self.codec.channels, *condition.shape[2:])

        def noise() -> Tensor:
            return standard_normal(draws, shape, label.device)

        def watched(x: Tensor, t: Tensor) -> Tensor:
            x0 = denoise(x, t)
            if watch is not None:
                watch(float(t[0]), self.codec.decode(x0).clamp(-1, 1))
            return x0

        code = sample(
            sampler,
            watched,
            self.process.schedule.initial_std * noise(),
            self.process,
            spaced_times(self.process, num_inference_steps, spacing),
            noise,
            eta,
            progress,
        )
        return self.codec.decode(code).clamp(-1, 1)


def sound_in_bf16(device: torch.device, first_sides: Iterable[int]) -> bool:
    """Whether 3-D convolutions of volumes with these first sides, one per level, can be trained in bfloat16 there.

    On processors torch 2.13 computes their weight gradient from memory that nobody wrote where the first side is 2.
    """
    return device.type != "cpu" or 2 not in first_sides


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there, and are not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
