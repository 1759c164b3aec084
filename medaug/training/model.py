"""Codec, network and process in one module: the loss on one side, `denoise` on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medaug.diffusion.guidance import guided
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.diffusion.process import Process, add_noise, predicted_sample, training_target
from medaug.diffusion.samplers import sample, times
from medaug.errors import UserError
from medaug.networks.codecs import Codec
from medaug.networks.condition import condition_channels, embed_mask
from medaug.networks.unet import ConcatUNet

PRECISIONS = ("auto", "bf16", "fp32")


class DiffusionModel(nn.Module):
    """p(image | mask) in codec space.

    Args:
        options: plain `codec`, `network` and `process` nodes of the options.
        num_modalities: channels of the image.
        num_classes: of the label map, with background.
        precision: of the network's matrix products: bf16, fp32, or auto (bf16 where the processor has it).
            Process, codec and loss are always computed in float32.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(self, options: dict[str, Any], num_modalities: int, num_classes: int, precision: str = "auto") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"trainer.precision={precision}: not one of {', '.join(PRECISIONS)}")
        network = options["network"]
        self.num_classes = num_classes
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
        """The network's output at x (B, C, ...), float32, whatever it is computed in."""
        bf16 = self.precision == "bf16" or (self.precision == "auto" and has_bf16(x.device))
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            return self.network(x, t, condition).float()

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The model's x_0 at x_t = x (B, C, ...), all in codec space."""
        return predicted_sample(self.process, self.predict(x, t, condition), x, t)

    def loss(self, batch: dict[str, Tensor], condition_dropout: float) -> Tensor:
        """Mean squared error of the prediction, per sample (B,).

        Each sample's time, noise and condition dropout come from a generator of its own, seeded by `batch["seed"]`.
        Scans without a label train the null condition, as does a share `condition_dropout` of the others.
        """
        x0 = self.codec.encode(batch["image"])
        draws = generators([named_seed(int(seed), "diffusion") for seed in batch["seed"]])
        kept = torch.stack([torch.rand((), generator=draw) >= condition_dropout for draw in draws])
        t = torch.cat([self.process.training_times(1, draw) for draw in draws]).to(x0.device)
        noise = standard_normal(draws, x0.shape[1:], x0.device)
        known = (batch["labelled"] & kept.to(x0.device))[:, None].expand(-1, self.num_classes - 1)
        output = self.predict(add_noise(self.process, x0, noise, t), t, self.condition(batch["label"], known))
        target = training_target(self.process, x0, noise, t)
        return (output - target).square().flatten(1).mean(1)

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
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images for masks: label (B, X, Y, Z), see `embed_mask`, to (B, M, X, Y, Z) in [-1, 1].

        Sample i depends on label[i] and seeds[i] alone, not on the batch that it is made in (to float rounding).
        """
        ones = torch.ones(len(label), self.num_classes - 1, device=label.device)
        condition = self.condition(label, ones)
        null = self.condition(label, torch.zeros_like(ones))
        draws = generators(seeds)
        shape = (self.codec.channels, *condition.shape[2:])

        def noise() -> Tensor:
            return standard_normal(draws, shape, label.device)

        code = sample(
            sampler,
            guided(self.denoise, condition, null, guidance_scale),
            noise(),
            self.process,
            self.process.shifted(times(num_inference_steps)),
            noise,
            eta,
            progress,
        )
        return self.codec.decode(code).clamp(-1, 1)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there, and are not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
