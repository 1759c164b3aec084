"""The first training stage: fits or trains the codec before diffusion training begins.

`identity` and `haar` only need their statistics measured. `kl` is an autoencoder, trained in the same run folder with
the absolute error, the KL divergence and, optionally, a patch discriminator (Esser et al. 2021; Rombach et al. 2022).
It resumes exactly, like diffusion training: a batch and its noise are functions of the step, and `codec.ckpt` holds
everything else.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from medaug.data.batches import WHOLE, FixedBatches, StepsFrom, TrainingBatches, as_tensors, collate, make_loader
from medaug.data.transforms import light_affine
from medaug.diffusion.noise import generators, named_seed, standard_normal
from medaug.errors import UserError
from medaug.files import atomic_write
from medaug.inputs import parsing
from medaug.networks.autoencoder import Autoencoder, LatentCodec, kl_divergence
from medaug.networks.codecs import Codec, crop
from medaug.networks.finite import not_finite
from medaug.options import CodecOptions, TrainerOptions
from medaug.processes import choose_device, process_rank, wait_for_first
from medaug.progress import track
from medaug.training.archive import check_optimizers, load_weights
from medaug.training.checkpoint import Card, read_checkpoint
from medaug.training.data import TrainingData
from medaug.training.model import has_bf16, sound_in_bf16
from medaug.training.module import Picture
from medaug.training.signals import StopSignals

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


def prepare_codec(
    codec: Codec,
    data: TrainingData,
    target: Callable[[Batch], Tensor],
    folder: Path,
    budget: TrainerOptions,
    logger: Logger,
    picture: Picture | None = None,
) -> None:
    """Set the codec's statistics and, for `kl`, load its weights from `codec.checkpoint` or train them.

    Training writes `codec.ckpt`. With several processes, rank 0 trains and the others wait for its file.

    Args:
        codec: the untrained codec, on the CPU; it stays there.
        data: scans and card of the run; scans without a label are used too.
        target: gives what is encoded: a batch's images, or another target (B, M, X, Y, Z) of the diffusion model.
        folder: folder of the run.
        budget: seed, augmentation, precision and intervals; also steps and batch size if the codec's own are null.
        logger: receives losses and validation errors as `codec/...`.
        picture: draws the reconstruction of a validation case beside the original, at every validation.

    Raises:
        UserError: a codec checkpoint that cannot be read, resumed or reused.
        SystemExit: stopped by a signal after saving; the status is 128 + the signal's number.
    """
    card = data.card
    if isinstance(codec, LatentCodec):
        given = CodecOptions(**card.options["codec"]).checkpoint
        path = folder / "codec.ckpt" if given is None else Path(given)
        if given is None and process_rank() == 0:
            _FirstStage(codec, data, target, path, budget, logger, picture).run()
        if given is None:
            wait_for_first(folder, lambda: path.exists() and _read(path, card)["codec"] is not None, interval=5.0)
        if (contents := _read(path, card))["codec"] is None:
            raise UserError(f"codec.checkpoint={path}: its training is unfinished", "run it to its end first")
        load_weights(codec, contents["codec"], path, "remove it to train the codec again")
        log.info("the codec is %s: validation %s", path, _describe(contents["validation"]))
    else:
        codec.fit(_coded(data, target))


def _coded(data: TrainingData, target: Callable[[Batch], Tensor]) -> Iterator[Tensor]:
    """Everything that is encoded, (M, X, Y, Z): whole cases, or parts of a patch's size that together make them up.

    Slices of padding are left out if cases are encoded slice by slice.
    """
    for case in data.train:
        part = case.slices if data.card.sliced else slice(None)
        boxes = [WHOLE] if data.patches is None else data.patches.tiles(case)
        for box in boxes:
            yield target(collate([as_tensors(case, box=box)]))[0][..., part]


def _without_padding(image: Tensor, inside: Tensor) -> Tensor:
    """Replace slices outside each scan, where `inside` (B, Z) is false, by slices of the scan: (B, M, X, Y, Z)."""
    turns = [slices.nonzero()[:, 0] for slices in inside.cpu()]
    index = torch.stack(
        [
            torch.where(slices, torch.arange(len(slices)), turn[torch.arange(len(slices)) % len(turn)])
            for slices, turn in zip(inside.cpu(), turns, strict=True)
        ]
    ).to(image.device)
    return image.gather(4, index[:, None, None, None].expand(image.shape))


def _read(path: Path, card: Card) -> dict[str, Any]:
    """Read a codec checkpoint; refuses another architecture or model space, and training on other subjects."""
    former, contents = read_checkpoint(path, "codec")
    then, now = _make(former), _make(card)
    if different := [f"{key} {then[key]}, not {now[key]}" for key in then if then[key] != now[key]]:
        raise UserError(f"not the codec of this run ({'; '.join(different)})", "set both to the same", path=path)
    if other := former.seen.trained_outside(card.subjects["train"]):
        raise UserError(
            f"saw {other[0]} ({len(other)} in all), which is not a training subject here",
            "leave out codec.checkpoint and train a codec on this split",
            path=path,
        )
    return contents


def _make(card: Card) -> dict[str, Any]:
    """Everything that two runs must share to use the same codec; the shape of the grid may differ."""
    codec = CodecOptions(**card.options["codec"])
    space = card.preprocessing.to_dict()
    del space["shape"]
    return {
        **{f"codec.{key}": getattr(codec, key) for key in ("name", "levels", "channels", "latent_channels")},
        "task.target": card.options.get("task", {}).get("target", "image"),
        "task.modalities": card.options.get("task", {}).get("modalities", []),
        "network.spatial_dims": card.options["network"]["spatial_dims"],
        "modalities": list(card.modalities),
        "phantom": card.phantom,
        **space,
    }


def _describe(validation: dict[str, float]) -> str:
    return f"PSNR {validation['psnr']:.1f} dB, mean absolute error {validation['absolute_error']:.4f}"


class _FirstStage:
    """The training loop of the autoencoder, with all the state that it needs to resume."""

    def __init__(
        self,
        codec: LatentCodec,
        data: TrainingData,
        target: Callable[[Batch], Tensor],
        path: Path,
        budget: TrainerOptions,
        logger: Logger,
        picture: Picture | None,
    ) -> None:
        self.codec, self.card, self.data, self.target = codec, data.card, data, target
        self.path, self.budget, self.logger, self.picture = path, budget, logger, picture
        self.options = options = CodecOptions(**self.card.options["codec"])
        self.seed = named_seed(budget.seed, "codec")
        self.steps = options.max_steps or max(1, budget.max_steps // 2)
        self.device = choose_device(budget.accelerator)
        image_channels = next(_coded(data, target)).shape[0]
        with torch.random.fork_rng():
            torch.manual_seed(named_seed(self.seed, "weights"))
            self.net = Autoencoder(codec.stride, image_channels, options.channels, options.latent_channels)
            self.critic = PatchDiscriminator(
                spatial_dims=2 if self.net.flat else 3,
                in_channels=image_channels,
                channels=options.channels[0],
                num_layers_d=2,
                kernel_size=3,  # the usual 4 needs sides above 8
                norm="INSTANCE",  # batches are small
            )
        self.parts: dict[str, nn.Module] = {"autoencoder": self.net.to(self.device)}
        if options.adversarial_weight:
            self.parts["critic"] = self.critic.to(self.device)
        self.optimizers = {
            name: torch.optim.AdamW(part.parameters(), options.learning_rate, weight_decay=0.0)
            for name, part in self.parts.items()
        }

    def run(self) -> None:
        """Train to the last step and save the codec, with its statistics, in the checkpoint."""
        start = 0
        if self.path.exists():
            contents = _read(self.path, self.card)
            if contents["codec"] is not None:
                return
            remedy = "restore it, or remove it to train the codec again"
            with parsing(self.path, remedy):
                start = int(contents["step"])
                for name, part in self.parts.items():
                    weights, state = contents["training"][name]
                    load_weights(part, weights, self.path, remedy)
                    self.optimizers[name].load_state_dict(state)
            check_optimizers(self.optimizers.values(), self.path, remedy)
        size = sum(p.numel() for p in self.net.parameters()) / 1e6
        log.info("first stage, an autoencoder of %.1f M parameters: step %d of %d", size, start, self.steps)
        signals = StopSignals()
        signals.listen()
        try:
            self._loop(start, signals)
        finally:
            signals.release()
        self.codec.autoencoder.load_state_dict(self.net.state_dict())
        self.codec.to(self.device)
        self.codec.fit(_coded(self.data, self.target))
        self.codec.cpu()
        self._save({"step": self.steps, "codec": self.codec.state_dict(), "validation": self._validate(self.steps)})
        if signals.received is not None:  # in the last step
            signals.leave("stopped at the end of the first stage", first=True)

    def _loop(self, start: int, signals: StopSignals) -> None:
        batches = self._batches(start)
        for step in track(range(start, self.steps), "codec"):
            losses = self._step(step, next(batches))
            done = step + 1
            if not_finite(losses) is not None:
                raise self._diverged(done)
            if done % min(50, self.steps) == 0:
                self.logger.log_metrics({f"codec/{name}": loss.item() for name, loss in losses.items()}, done)
            if done == self.steps:
                return
            if signals.received is not None or done % self.budget.checkpoint_every == 0:
                pairs = {
                    name: (part.state_dict(), self.optimizers[name].state_dict()) for name, part in self.parts.items()
                }
                self._save({"step": done, "codec": None, "training": pairs})
            if signals.received is not None:
                signals.leave(f"stopped at step {done} of the first stage", first=True)
            if done % self.budget.validate_every == 0:
                found = _describe(self._validate(done))
                log.info("first stage, step %d of %d: validation %s", done, self.steps, found)

    def _batches(self, start: int) -> Iterator[Batch]:
        size = self.options.batch_size or self.budget.batch_size
        augment = light_affine if self.budget.augment else None
        data = TrainingBatches(self.data.train, size, self.seed, augment, sliced=self.card.sliced).of(self.data.patches)
        return iter(make_loader(data, StepsFrom(start, self.steps), self.budget.num_workers))

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One step of the autoencoder and, in the second half of the training, of the discriminator; returns losses."""
        image = self.target(batch).to(self.device)
        if self.card.sliced:
            image = _without_padding(image, batch["inside"])
        draws = generators([named_seed(int(seed), "latent") for seed in batch["seed"]])
        with self._autocast(image):
            mean, std = self.net.posterior(image)
            noise = standard_normal(draws, mean.shape[1:], self.device)
            output = crop(self.net.decode(mean + std * noise), image.shape[2:])
        losses = {"absolute_error": l1_loss(output.float(), image), "kl": kl_divergence(mean.float(), std.float())}
        loss = losses["absolute_error"] + self.options.kl_weight * losses["kl"]
        adversarial = "critic" in self.parts and step >= self.steps // 2
        if adversarial:
            losses["adversarial"] = self._verdict(output, real=True, for_discriminator=False)
            loss = loss + self.options.adversarial_weight * losses["adversarial"]
        self._descend("autoencoder", loss, step)
        if adversarial:
            fake = self._verdict(output.detach(), real=False, for_discriminator=True)
            losses["critic"] = 0.5 * (fake + self._verdict(image, real=True, for_discriminator=True))
            self._descend("critic", losses["critic"], step)
        return losses

    def _verdict(self, image: Tensor, *, real: bool, for_discriminator: bool) -> Tensor:
        """Least-squares loss of the discriminator's output on each patch (Mao et al. 2017)."""
        with self._autocast(image):
            verdict = self.critic(self.net.slices(image))[-1]
        criterion = PatchAdversarialLoss(criterion="least_squares")
        return criterion(verdict.float(), target_is_real=real, for_discriminator=for_discriminator)

    def _descend(self, name: str, loss: Tensor, step: int) -> None:
        part, optimizer = self.parts[name], self.optimizers[name]
        for group in optimizer.param_groups:  # cosine decay to a tenth
            group["lr"] = self.options.learning_rate * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), self.budget.gradient_clip)
        optimizer.step()

    def _autocast(self, image: Tensor) -> torch.autocast:
        bf16 = self.budget.precision == "bf16" or (self.budget.precision == "auto" and has_bf16(self.device))
        sides = [-(-image.shape[2] // 2**level) for level in range(len(self.options.channels))]
        bf16 = bf16 and (self.net.flat or sound_in_bf16(self.device, sides))
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    @torch.no_grad()
    def _validate(self, step: int) -> dict[str, float]:
        """Mean absolute error and PSNR (range -1 to 1) of the posterior's mean, averaged over validation cases."""
        errors, decibels = [], []
        batches = FixedBatches(self.data.val, 1, self.seed, patches=self.data.patches)
        for i in range(len(batches)):
            batch = batches[i]
            image = self.target(batch).to(self.device)
            output = crop(self.net.decode(self.net.posterior(image)[0]), image.shape[2:]).clamp(-1, 1)
            error = (output - image)[..., self.data.val[i].slices if self.card.sliced else slice(None)]
            errors.append(float(error.abs().mean()))
            decibels.append(10 * math.log10(4 / max(float(error.square().mean()), 1e-12)))
            if i == 0 and self.picture is not None:
                self.picture(step, batch, output.cpu())
        found = {"absolute_error": sum(errors) / len(errors), "psnr": sum(decibels) / len(decibels)}
        self.logger.log_metrics({f"codec/validation_{name}": value for name, value in found.items()}, step)
        self.logger.save()
        return found

    def _diverged(self, step: int) -> UserError:
        return UserError(
            f"step {step} of the first stage: a loss or a weight is NaN or infinite: the codec's training has diverged",
            "lower codec.learning_rate and train again (overwrite=true)",
        )

    def _save(self, contents: dict[str, Any]) -> None:
        if not_finite(contents) is not None:
            raise self._diverged(contents["step"])
        # Serialise in memory first: torch.save's disk-full error cannot be distinguished from a bug.
        buffer = io.BytesIO()
        torch.save({"medaug": self.card.to_dict(), **contents}, buffer)
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(buffer.getvalue())
