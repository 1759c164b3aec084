"""Devices, precision and strategies: checks the options against the machine, and builds Lightning's strategy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.processes import process_count


def check_device(budget: TrainerOptions) -> None:
    """Refuse what this machine cannot train with, before anything is written.

    Raises:
        UserError: names the option, the reason and the remedy.
    """
    device = device_type(budget)
    if budget.precision == "fp16" and device != "cuda":
        raise UserError(f"trainer.precision=fp16: needs a CUDA device, and this is {device}", "use auto, bf16 or fp32")
    if budget.precision == "fp16" and budget.strategy == "fsdp":
        raise UserError("trainer.precision=fp16 cannot be used with trainer.strategy=fsdp", "use bf16")
    if budget.devices < 1 and (budget.devices != -1 or device == "cpu"):
        raise UserError(
            f"trainer.devices={budget.devices}: on {device}, give their number"
            + (", or -1 for all" * (device != "cpu"))
        )
    if device == "cuda" and budget.devices > (there := torch.cuda.device_count()):
        raise UserError(
            f"trainer.devices={budget.devices}: this machine has {there}", f"give at most {there}, or -1 for all"
        )


def check_processes(budget: TrainerOptions) -> None:
    """Refuse to train if the launcher started another number of processes than the options need.

    Raises:
        UserError: says how many there are, how many are needed, and the remedy.
    """
    started, needed = process_count(), world_size(budget)
    if started > 1 and started != needed:
        way = "trainer=ddp (or fsdp), trainer.devices per node and trainer.num_nodes"
        raise UserError(f"{started} processes were started, and the options are for {needed}", f"set {way} to match")
    if started == 1 and budget.num_nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"trainer.num_nodes={budget.num_nodes}: nothing started this training on the other nodes",
            "use torchrun or srun (docs/howto/slurm.md)",
        )


def device_type(budget: TrainerOptions) -> str:
    """The kind of device that `trainer.accelerator` selects on this machine: cpu, cuda or mps.

    Raises:
        UserError: there is no such device.
    """
    if budget.accelerator != "cpu":
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        if budget.accelerator == "gpu":
            raise UserError("trainer.accelerator=gpu: torch sees no GPU here", "use trainer.accelerator=auto")
    return "cpu"


def world_size(budget: TrainerOptions) -> int:
    """The number of processes that train together, one per device."""
    devices = torch.cuda.device_count() if budget.devices == -1 else budget.devices
    return max(devices, 1) * budget.num_nodes


def compiles(budget: TrainerOptions) -> bool:
    """Whether the network is compiled; `auto` compiles on CUDA only: on a CPU it takes minutes and gains nothing."""
    return budget.compile == "true" or (budget.compile == "auto" and device_type(budget) == "cuda")


def make_strategy(budget: TrainerOptions) -> str | Strategy:
    """Lightning's strategy; fsdp is PyTorch's FSDP2 with its checkpoint gathered into one file."""
    if budget.strategy != "fsdp":
        return budget.strategy
    return ModelParallelStrategy(
        data_parallel_size=world_size(budget), tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Split the weights between the mesh's data-parallel devices; a block's weights are gathered while it computes."""
    units = [block for module in network.modules() if isinstance(module, nn.ModuleList) for block in module]
    for unit in (*reversed(units), network):  # inner ones first
        # Reshard after validation, too, because validation swaps the averaged weights with the split ones.
        fully_shard(unit, mesh=mesh["data_parallel"], reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was applied to any part of the module."""
    return any(isinstance(m, FSDPModule) for m in module.modules())


class ScaledGradients(MixedPrecision):
    """fp16's loss scaling (Micikevicius et al. 2018), without autocast around the loss.

    The network opens its own autocast; process, codec and loss stay in float32.
    """

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Open no autocast here; the model sets its own precision."""
        yield
