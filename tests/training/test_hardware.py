"""Hardware options: which ones are refused, and loss scaling, which changes neither precision nor result."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.distributed import TCPStore
from torch.utils.data import DataLoader

from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.training.hardware import ScaledGradients, check_device, check_processes, compiles, device_type
from medaug.training.ranks import PARENT, _store, prepared_ranks

CPU = TrainerOptions(accelerator="cpu")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"precision": "fp16"}, "needs a CUDA device"),
        ({"devices": 0}, "give their number"),
        ({"devices": -1}, "give their number"),
    ],
)
def test_impossible_hardware_options_are_refused_with_one_line(change, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        check_device(replace(CPU, **change))
    assert "\n" not in str(caught.value)
    check_device(CPU)


def test_options_that_are_valid_only_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(TrainerOptions(precision="fp16", devices=-1))
    with pytest.raises(UserError, match="fp16 cannot be used with trainer.strategy=fsdp"):
        check_device(TrainerOptions(precision="fp16", strategy="fsdp"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device(TrainerOptions(devices=2))
    with pytest.raises(UserError, match="trainer.devices=3: this machine has 2"):
        check_device(TrainerOptions(devices=3))
    assert compiles(TrainerOptions()) and not compiles(TrainerOptions(compile="false"))
    assert not compiles(CPU) and compiles(replace(CPU, compile="true"))


@pytest.mark.parametrize(
    ("started", "change", "complaint"),
    [
        ({}, {}, None),
        ({}, {"devices": 4, "strategy": "ddp"}, None),  # Lightning starts them
        ({}, {"num_nodes": 2}, "nothing started this training on the other nodes"),
        ({"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "0"}, {"num_nodes": 2}, None),
        ({"RANK": "0", "WORLD_SIZE": "4"}, {"devices": 2, "num_nodes": 2}, None),
        ({"RANK": "0", "WORLD_SIZE": "4"}, {}, "4 processes were started, and the options are for 1"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, {"devices": 4}, "2 processes .* for 4"),
    ],
)
def test_number_of_processes_must_match_the_options(monkeypatch, started, change, complaint):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint) if complaint else contextlib.nullcontext():
        check_processes(replace(CPU, **change))


def test_a_missing_gpu_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_type(TrainerOptions()) == "cpu"
    with pytest.raises(UserError, match="torch sees no GPU"):
        check_device(TrainerOptions(accelerator="gpu"))


class Fit(LightningModule):
    """Fits a line and notes whether autocast is on where the loss is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(3, 1)
        with torch.no_grad():
            self.line.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
            self.line.bias.zero_()
        self.autocast = False

    def training_step(self, batch, batch_idx):
        self.autocast |= torch.is_autocast_enabled("cpu")
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_loss_scaling_changes_no_bit_and_no_precision():
    """Scales are powers of two; the first one, 2^127, overflows, and its step is skipped."""
    torch.manual_seed(0)
    batches = torch.randn(6, 4, 3) * 10

    def trained(batches, plugins):
        module = Fit()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            plugins=plugins,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
        assert not module.autocast
        return module.line.weight.detach(), trainer

    plain, _ = trained(batches[1:], None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    scaled, trainer = trained(batches, [ScaledGradients("16-mixed", "cpu", scaler)])
    assert torch.equal(plain, scaled)
    assert trainer.precision_plugin.state_dict()["scale"] == 2.0**67


def test_the_port_of_the_ranks_is_reserved_before_they_start(monkeypatch, tmp_path):
    for variable in ("MASTER_PORT", "LOCAL_RANK", PARENT):
        monkeypatch.setenv(variable, "")  # so that it is removed afterwards
        monkeypatch.delenv(variable)
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    before = dict(os.environ)
    with prepared_ranks(trainer):
        port = trainer.strategy.cluster_environment.main_port
        assert os.environ["MASTER_PORT"] == str(port) and os.environ[PARENT] == str(os.getpid())
        with socket.socket() as another_program, pytest.raises(OSError, match="in use"):
            another_program.bind(("127.0.0.1", port))
        shared = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, multi_tenant=True)
        shared.set("as", "the process group does")
        assert _store().get("as") == b"the process group does"
        os.environ["LOCAL_RANK"] = "0"  # as Lightning does
    assert dict(os.environ) == before  # a training started later by this process finds a port of its own
