"""The moving average of the weights, which is used for evaluation, checkpoints and sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel

from medaug.training.hardware import is_sharded, shard


def power_function_exponent(sigma_rel: float) -> float:
    """The exponent gamma for which the profile t^gamma has a standard deviation of sigma_rel times its length.

    It solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) and is the largest root of a cubic (Karras et al.
    2024, "Analyzing and improving the training dynamics of diffusion models", appendix C). sigma_rel is in
    (0, 1 / sqrt(12)); at the upper end all steps have equal weight.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_function_average(sigma_rel: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The `multi_avg_fn` of an `AveragedModel`: updates the averages in place after step `number` + 1.

    After step t the averages move towards the weights by 1 - beta(t), where beta(t) = (1 - 1 / t)^(gamma + 1) (Karras
    et al. 2024, section 3.1).
    """
    gamma = power_function_exponent(sigma_rel)

    def average(averaged: list[Tensor], current: list[Tensor], number: Tensor | int) -> None:
        t = int(number) + 1
        torch._foreach_lerp_(averaged, current, 1 - (1 - 1 / t) ** (gamma + 1))

    return average


class PowerFunctionAverage(WeightAveraging):
    """Moving average with the power-function profile: the weights of step s have weight s^gamma in the average.

    See `power_function_average`. The average always covers the same fraction of the training so far, so it needs no
    warm-up: beta(1) = 0.

    Weights that are split between devices (`shard`) are averaged on their own device; the checkpoint is still one file.
    """

    def __init__(self, sigma_rel: float) -> None:
        # Buffers hold the codec's statistics, which are measured: averaging them would only add rounding errors.
        super().__init__(use_buffers=False, multi_avg_fn=power_function_average(sigma_rel))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model before it is split, then split the copy in the same way."""
        if stage == "fit":
            mesh, pl_module._device_mesh = pl_module._device_mesh, None  # process groups cannot be copied
            # The model itself is moved to the device later. If weights are split, `shard` moves the copy in parts.
            device = trainer.strategy.root_device if mesh is None else pl_module.device
            self._average_model = AveragedModel(pl_module, device, use_buffers=False, **self._kwargs)
            pl_module._device_mesh = mesh
            if mesh is not None:
                shard(self._average_model.get_submodule("module.model.network"), mesh)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights as "state_dict", and the current weights beside them."""
        average = self._average_model
        if average is None or not is_sharded(average):
            return super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
        checkpoint["state_dict"] = get_model_state_dict(average.module, options=gathered)
        checkpoint["averaging_state"] = {"n_averaged": average.n_averaged}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the averaged and the current weights."""
        average = self._average_model
        if average is None or not is_sharded(average):
            return super().on_load_checkpoint(trainer, pl_module, checkpoint)
        average.module.load_state_dict(pl_module.state_dict())  # the strategy loaded these from "state_dict"
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(pl_module, checkpoint["current_model_state"], options=whole)
        average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
