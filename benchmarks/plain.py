"""The baseline: a plain pixel-space DDPM on MONAI's U-Net, trained and sampled as in MONAI's tutorials.

No codec: the network sees the noisy volume and the one-hot mask at full resolution, all planes 0 for the null
condition. MONAI's own scheduler adds the noise (linear, 1,000 steps, epsilon). What differs from the tutorials favours
this baseline: optimiser, learning rate and its schedule, averaged weights, bf16 where the processor has it, batches and
augmentation are those of medaug, and sampling takes medaug's ancestral sampler, since MONAI's DDPMScheduler is wrong at
fewer steps than it was trained with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medaug.data.batches import StepsFrom, make_loader
from medaug.data.cases import ModelCase
from medaug.diffusion.guidance import Guidance, guided
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.diffusion.process import build_process, predicted_sample
from medaug.diffusion.samplers import ddpm
from medaug.diffusion.spacings import trailing
from medaug.files import atomic_write
from medaug.networks.condition import one_hot
from medaug.options import NetworkOptions, Options, TrainerOptions
from medaug.training.averaging import power_function_average
from medaug.training.model import has_bf16
from medaug.training.module import make_optimizer, training_batches

TIMESTEPS = 1000
Batch = dict[str, Tensor]


class PlainDDPM(nn.Module):
    """p(image | mask) in pixel space, with `loss` and `sample` like `medaug.training.model.DiffusionModel`."""

    def __init__(self, num_modalities: int, num_classes: int, network: NetworkOptions) -> None:
        super().__init__()
        self.num_modalities = num_modalities
        self.num_classes = num_classes
        self.network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=num_modalities + num_classes,
            out_channels=num_modalities,
            channels=tuple(network.channels),
            attention_levels=tuple(network.attention),
            num_res_blocks=network.num_res_blocks,
            num_head_channels=network.num_head_channels,
            norm_num_groups=network.norm_num_groups,
            use_flash_attention=True,
        )
        self.scheduler = DDPMScheduler(num_train_timesteps=TIMESTEPS, schedule="linear_beta")
        self.inferer = DiffusionInferer(self.scheduler)
        self.process = build_process("linear", "epsilon", num_train_timesteps=TIMESTEPS)

    def loss(self, batch: Batch, condition_dropout: float) -> Tensor:
        """Squared error of epsilon per sample (B,); a share of the masks is dropped."""
        image = batch["image"]
        draws = generators([named_seed(int(seed), "diffusion") for seed in batch["seed"]])
        kept = torch.stack([torch.rand((), generator=draw) >= condition_dropout for draw in draws]).to(image.device)
        steps = torch.cat([torch.randint(0, TIMESTEPS, (1,), generator=draw) for draw in draws]).to(image.device)
        noise = standard_normal(draws, image.shape[1:], image.device)
        planes = one_hot(batch["label"], self.num_classes) * (batch["labelled"] & kept).view(-1, 1, 1, 1, 1)
        with self._autocast(image.device):
            output = self.inferer(image, self.network, noise, steps, condition=planes.float(), mode="concat")
        return (output.float() - noise).square().flatten(1).mean(1)

    @torch.no_grad()
    def sample(
        self,
        label: Tensor,
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        guidance_rescale: float,
        num_inference_steps: int,
    ) -> Tensor:
        """Images (B, M, X, Y, Z) in [-1, 1] for masks label (B, X, Y, Z), by DDPM's posterior of the actual step.

        x_0 is clamped to [-1, 1] at every step, as MONAI's scheduler does.
        """
        planes = one_hot(label, self.num_classes).float()

        def denoise(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            with self._autocast(x.device):
                output = self.network(torch.cat([x, condition], dim=1), (TIMESTEPS * t).round() - 1)
            return predicted_sample(self.process, output.float(), x, t)

        both = guided(denoise, planes, torch.zeros_like(planes), Guidance(guidance_scale, rescale=guidance_rescale))
        draws = generators(seeds)
        shape = (self.num_modalities, *label.shape[1:])

        def noise() -> Tensor:
            return standard_normal(draws, shape, label.device)

        x, grid = noise(), trailing(self.process, num_inference_steps)
        for state in ddpm(lambda x, t: both(x, t).clamp(-1, 1), x, self.process, grid, noise):
            x = state
        return x.clamp(-1, 1)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16(device))


class Training:
    """A plain loop around any model: AdamW, clipping, averaged weights.

    Args:
        model: the module to train.
        loss: of a batch, per sample (B,).
        budget: learning rate, clipping and averaging.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor], budget: TrainerOptions) -> None:
        self.model = model
        self.loss = loss
        self.budget = budget
        self.optimizer = make_optimizer(model, budget)
        self.averaged = AveragedModel(model, multi_avg_fn=power_function_average(budget.ema_sigma_rel))
        self.step = 0
        self.seconds = 0.0

    def __call__(self, batch: Batch, factor: float = 1.0) -> float:
        """One optimisation step at `factor` times the learning rate; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.budget.learning_rate
        loss = self.loss(batch).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.budget.gradient_clip)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything that the loop needs to resume."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "averaged", "optimizer")}
        with atomic_write(path) as temporary:
            torch.save(state | {"step": self.step, "seconds": self.seconds}, temporary)

    def load(self, path: Path) -> None:
        """The inverse of `save`."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "averaged", "optimizer"):
            getattr(self, key).load_state_dict(state[key])
        self.step, self.seconds = state["step"], state["seconds"]


def batches(cases: Sequence[ModelCase], budget: TrainerOptions, start: int = 0) -> Iterator[Batch]:
    """medaug's training batches from step `start` on, endless, augmented in a separate process."""
    steps = StepsFrom(start, 10**9)
    data = training_batches(cases, budget)
    return iter(make_loader(data, steps, budget.num_workers))


def train_for(
    seconds: float,
    warmup: float,
    cases: Sequence[ModelCase],
    num_classes: int,
    options: Options,
    path: Path,
) -> Training:
    """Train until `seconds` of wall time are used, including earlier calls; saves a checkpoint every minute.

    The learning rate follows medaug's curve over time: a linear warm-up, a cosine decay to a tenth.

    Args:
        seconds: of wall time.
        warmup: share of it that the warm-up takes.
        cases: to train on.
        num_classes: of their labels, with background.
        options: network and trainer are read.
        path: the checkpoint, from which it goes on where there is one.
    """
    network, budget = options.network, options.trainer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(budget.seed, "weights"))
        model = PlainDDPM(len(cases[0].image), num_classes, network)
    training = Training(model, lambda batch: model.loss(batch, budget.condition_dropout), budget)
    if path.exists():
        training.load(path)
    before, saved, began = training.seconds, 0.0, time.perf_counter()
    for batch in batches(cases, budget, training.step):
        if training.seconds >= seconds:
            break
        progress = training.seconds / seconds
        warmth = min(1.0, (progress + 1 / seconds) / warmup)  # a second ahead: the first step is one as well
        loss = training(batch, warmth * (0.55 + 0.45 * math.cos(math.pi * progress)))
        spent = time.perf_counter() - began
        training.seconds = before + spent
        if spent - saved > 60 or training.seconds >= seconds:
            training.save(path)
            saved = spent
            print(
                f"plain: step {training.step}, {training.seconds:.0f} of {seconds:.0f} s, loss {loss:.4f}", flush=True
            )
    return training
