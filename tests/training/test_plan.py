"""The sums in a plan, and its memory estimate against the memory that a process really uses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.config import load_options
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.options import TrainerOptions
from medaug.train import main
from medaug.training import plan as plan_module
from medaug.training.checkpoint import Card
from medaug.training.data import TrainingData
from medaug.training.model import Dropout
from medaug.training.module import training_batches
from medaug.training.plan import STATE_BYTES, make_plan, saved_bytes

SHAPE = (8, 8, 4)
BUDGET = TrainerOptions(max_steps=7, batch_size=2, accumulate=3, validate_every=3, accelerator="cpu", augment=False)


def make_card(**network):
    return Card(
        experiment="toy",
        options=model_options(**network),
        preprocessing=Preprocessing(SHAPE, None, (0.0, 100.0)),
        schema=LabelSchema(((0, "background"), (1, "lesion"))),
        modalities=("T1",),
        subjects={"train": ["a", "b"], "val": ["c"]},
        phantom=True,
    )


def make_cases(num):
    placement = Placement(SHAPE, ((0, 1), (1, 1), (2, 1)), SHAPE, (0.0,), (1.0,))
    image, label = np.zeros((1, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8)
    return [
        ModelCase(
            case=Case(str(i), ("x.nii.gz",), None, str(i), "train"),
            image=image,
            label=label if i else None,
            affine=np.eye(4),
            dtype=np.dtype(np.int16),
            placement=placement,
        )
        for i in range(num)
    ]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_plan_adds_up(monkeypatch, spatial_dims):
    monkeypatch.setattr(plan_module, "_measure", lambda *_: (0.5, 0.1))
    card = make_card(spatial_dims=spatial_dims)
    plan = make_plan(TrainingData(card, make_cases(4), make_cases(2)), BUDGET)
    assert (plan.subjects, plan.scans, plan.labelled, plan.step_samples) == (2, 4, 3, 6)
    assert plan.parameters == sum(p.numel() for p in card.build().parameters())
    assert plan.step_seconds == 1.5
    # two validations of 2 cases at a time of their own and 5 levels, and 2 pictures of 12 steps with guidance
    assert plan.validation_seconds == pytest.approx(2 * (2 * 6 + 2 * 24) * 0.1 / 2)
    said = "\n".join(plan.lines())
    assert "4 training scans (3 labelled) of 2 subjects, grid 8x8x4" in said
    assert ("16 slices" in said) == (spatial_dims == 2)
    assert "7 steps of 6, 10.5 passes" in said
    assert f"{round(7 * 1.5 + 6)} s (1.5 s a step, 6 s of it validation; not counted: reading, communication)" in said
    split = make_plan(TrainingData(card, make_cases(4), make_cases(2)), replace(BUDGET, strategy="fsdp", devices=2))
    assert plan.memory - split.memory == STATE_BYTES * plan.parameters // 2
    assert split.step_samples == 12


@pytest.mark.parametrize("given", [None, "codec.ckpt"])
def test_a_plan_names_what_it_does_not_count(monkeypatch, given):
    monkeypatch.setattr(plan_module, "_measure", lambda *_: (0.5, 0.1))
    card = make_card()
    codec = {"name": "kl", "channels": [8, 8], "checkpoint": given}
    card = replace(card, options=card.options | {"codec": codec})
    plan = make_plan(TrainingData(card, make_cases(4), make_cases(2)), BUDGET, scored=True)
    first_stage = () if given else ("the first stage of codec=kl",)
    assert plan.uncounted == ("reading", "communication", *first_stage, "scoring of samples")
    model = card.build()
    autoencoder = sum(buffer.numel() for buffer in model.codec.buffers())
    batch = training_batches(make_cases(4), BUDGET)[0]
    expected = STATE_BYTES * plan.parameters + 8 * autoencoder + saved_bytes(model, batch, Dropout.of(BUDGET))
    assert plan.memory == expected and autoencoder > 1000


def test_saved_activations_are_counted_once():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(5, 7)

        def loss(self, batch, dropout):
            return self.line(batch["x"]).relu().square().mean(1)

    # the input, for the weight's gradient, and what ReLU gives, for its own and the square's
    assert saved_bytes(Model(), {"x": torch.zeros(3, 5)}, Dropout()) == 4 * (3 * 5 + 3 * 7)


@pytest.mark.slow
def test_a_dry_run_logs_the_plan_and_creates_no_run(tmp_path, caplog):
    words = ("experiment=demo", "preset=smoke", "data.phantom_subjects=5", "data.max_side=16", "data.test_fraction=0.4")
    with caplog.at_level("INFO", "medaug"):
        main(load_options("train", [*words, f"runs={tmp_path}", "dry_run=true", "trainer.condition_dropout=0"]))
    assert "the null condition is not trained" in caplog.text
    assert "2 training scans (2 labelled) of 2 subjects, grid 16x16x16" in caplog.text
    assert "8 steps of 2, 8.0 passes" in caplog.text
    assert "estimated time" in caplog.text and "estimated memory" in caplog.text
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["cache", "phantom"]


@pytest.mark.slow
def test_dry_run_reports_if_a_step_does_not_fit_in_memory(tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(plan_module, "saved_bytes", full)
    words = ("experiment=demo", "preset=smoke", "data.phantom_subjects=5", "data.max_side=16", "data.test_fraction=0.4")
    with pytest.raises(UserError, match="does not fit the device; lower trainer.batch_size"):
        main(load_options("train", [*words, f"runs={tmp_path}", "dry_run=true"]))


RESIDENT = """
from pathlib import Path
from copy import deepcopy
import torch
from helpers import model_options
from medaug.training.model import DiffusionModel, Dropout
from medaug.training.plan import STATE_BYTES, saved_bytes

def most():  # ru_maxrss would count what the process that started this one held
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def make(channels):
    return DiffusionModel(model_options(channels=channels), 1, 3, "fp32")

def batch(num, side):
    label = torch.zeros(num, side, side, side, dtype=torch.long)
    image = torch.zeros(num, 1, side, side, side)
    return {"image": image, "label": label, "labelled": torch.ones(num).bool(), "seed": torch.arange(num)}

torch.set_num_threads(1)
make([8, 8]).loss(batch(1, 8)).mean().backward()  # libraries take their part
before = most()
model = make([32, 32])
average, optimizer = deepcopy(model), torch.optim.AdamW(model.parameters())
for _ in range(2):
    model.loss(batch(2, 32)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
peak = (most() - before) * 1024
print(peak, STATE_BYTES * sum(p.numel() for p in model.parameters()) + saved_bytes(model, batch(2, 32), Dropout()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_is_a_lower_bound_of_the_right_size():
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    peak, estimate = map(int, done.stdout.split())
    assert 0.4 * peak < estimate < 1.1 * peak


def test_a_plan_does_not_count_padding_slices(monkeypatch):
    monkeypatch.setattr(plan_module, "_measure", lambda *_: (0.5, 0.1))
    short = Placement((8, 8, 1), ((0, 1), (1, 1), (2, 1)), (8, 8, 1), (0.0,), (1.0,))
    first, *others = make_cases(4)
    plan = make_plan(
        TrainingData(make_card(spatial_dims=2), [replace(first, placement=short), *others], make_cases(2)), BUDGET
    )
    assert plan.slices == 1 + 3 * 4 and "13 slices" in "\n".join(plan.lines())
    assert make_plan(TrainingData(make_card(), make_cases(4), make_cases(2)), BUDGET).slices is None
