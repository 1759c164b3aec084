"""Tests of what can fail on a GPU only. Without a GPU they run on the CPU."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bits, model_options, samples
from test_fit import BUDGET, CARD, contents, train
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medaug.networks.layers import UpsampledConv
from medaug.training.hardware import compiles
from medaug.training.model import DiffusionModel, Dropout, has_bf16

pytestmark = [pytest.mark.slow, pytest.mark.gpu]

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIDE = 16
ATTENTION = {"channels": [16, 32], "attention": [False, True], "num_head_channels": 16}
HERE = replace(BUDGET, accelerator="auto", compile="false")


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Without TF32, so that both devices compute float32 to its own rounding."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Allow only kernels that sum in a fixed order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


def make_model(precision: str = "fp32", device: torch.device = DEVICE, **process) -> DiffusionModel:
    """The same weights every time, none of them zero, so that every layer affects the output."""
    torch.manual_seed(0)
    model = DiffusionModel(model_options(process or None, **ATTENTION), 2, 3, precision)
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    return model.to(device)


def make_batch(device: torch.device = DEVICE) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shape = (2, SIDE, SIDE, SIDE)
    batch = {
        "image": torch.rand(2, *shape, generator=draw) * 2 - 1,
        "label": torch.randint(0, 3, shape, generator=draw),
        "labelled": torch.ones(2, dtype=torch.bool),
        "seed": torch.arange(2),
    }
    return {key: value.to(device) for key, value in batch.items()}


def gradients(model: DiffusionModel, t: Tensor | None = None) -> tuple[float, Tensor]:
    """The loss of a batch and all gradients in one vector, on the processor."""
    loss = model.loss(make_batch(next(model.parameters()).device), Dropout(0.5), t=t).mean()
    model.zero_grad(set_to_none=True)
    loss.backward()
    parts = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return loss.item(), torch.cat(parts).float().cpu()


def sample(model: DiffusionModel) -> Tensor:
    label = make_batch(next(model.parameters()).device)["label"]
    result = samples(model, label, [1, 2], guidance_scale=2.0, sampler="dpmpp_2m", num_inference_steps=4)
    return result.cpu()


@pytest.mark.parametrize(("precision", "far"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_compiled_training_and_sampling_equal_eager(precision, far):
    """In bfloat16 fused layers round less often than single ones do."""
    eager, compiled = make_model(precision), make_model(precision)
    compiled.network.compile(backend="inductor" if CUDA else "eager")  # compiling for processors takes minutes
    (loss, gradient), (other_loss, other) = gradients(eager), gradients(compiled)
    assert other_loss == pytest.approx(loss, rel=far)
    assert (other - gradient).norm() < far * gradient.norm()
    one, two = sample(eager), sample(compiled)
    assert one.std() > 0.1
    assert (two - one).square().mean().sqrt() < far * one.std()


def test_cpu_gives_the_same_gradients_and_samples():
    here, processor = make_model(), make_model(device=torch.device("cpu"))
    (loss, gradient), (other_loss, other) = gradients(here), gradients(processor)
    assert other_loss == pytest.approx(loss, rel=1e-4)
    assert (other - gradient).norm() < 1e-3 * gradient.norm()
    torch.testing.assert_close(sample(here), sample(processor), atol=2e-3, rtol=0)


def test_bf16_is_close_to_float32():
    (loss, gradient), (other_loss, other) = gradients(make_model()), gradients(make_model("bf16"))
    assert other_loss == pytest.approx(loss, rel=0.02)
    assert (other - gradient).norm() < 0.2 * gradient.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"] if CUDA else ["bf16"])
@pytest.mark.parametrize(
    ("noise_schedule", "prediction_type"),
    [("rectified_flow", "flow"), ("cosine", "v_prediction"), ("linear", "epsilon"), ("edm", "edm")],
)
def test_gradients_are_finite_at_both_ends_of_time(precision, noise_schedule, prediction_type):
    model = make_model(precision, noise_schedule=noise_schedule, prediction_type=prediction_type)
    for time in (1e-3, 1.0):
        loss, gradient = gradients(model, torch.full((2,), time, device=DEVICE))
        assert torch.tensor(loss).isfinite() and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, *([SDPBackend.EFFICIENT_ATTENTION] if CUDA else [])])
def test_attention_kernels_agree_with_the_formula(backend):
    """The kernel is forced: torch raises where it cannot take the shapes and types that the network gives it."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 512, 32, generator=draw).to(DEVICE, dtype) for _ in range(3))
    with sdpa_kernel(backend):
        found = F.scaled_dot_product_attention(q, k, v).float()
    weights = (q.float() @ k.float().mT / 32**0.5).softmax(-1)
    torch.testing.assert_close(found, weights @ v.float(), atol=0.02 if CUDA else 1e-5, rtol=0.02)


def test_the_network_uses_the_flash_kernel():
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert sample(make_model("auto")).isfinite().all()


def test_upsampling_equals_interpolation_and_convolution():
    torch.manual_seed(0)
    conv = nn.Conv3d(8, 6, 3, padding=1).to(DEVICE)
    x = torch.randn(2, 8, 6, 4, 5, device=DEVICE)
    expected = conv(F.interpolate(x, scale_factor=2.0))
    torch.testing.assert_close(UpsampledConv(conv)(x), expected, atol=1e-5, rtol=1e-5)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    with deterministic():
        train(tmp_path / "whole", budget=HERE)
        train(tmp_path / "parts", budget=replace(HERE, max_steps=3, schedule="constant"))
        train(tmp_path / "whole_constant", budget=replace(HERE, schedule="constant"))
        train(tmp_path / "parts", budget=replace(HERE, schedule="constant"))
    assert_same_bits(contents(tmp_path / "whole_constant"), contents(tmp_path / "parts"))
    # the bits include the schedule; otherwise the comparison would show nothing
    with pytest.raises(AssertionError):
        assert_same_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_many_trains_like_one_alone(tmp_path, strategy):
    """NCCL on CUDA, gloo elsewhere."""
    train(tmp_path / "alone", budget=HERE)
    train(tmp_path / strategy, budget=replace(HERE, strategy=strategy))
    alone, split = contents(tmp_path / "alone"), contents(tmp_path / strategy)
    assert split["global_step"] == alone["global_step"] == HERE.max_steps
    for part in ("state_dict", "current_model_state"):
        for key, value in alone[part].items():
            torch.testing.assert_close(split[part][key].cpu(), value.cpu(), atol=2e-4, rtol=1e-2)


def losses(folder: Path) -> list[float]:
    """The logged training losses, in order."""
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("precision", ["bf16", "fp16"] if CUDA else ["bf16"])
def test_reduced_precision_learns_as_float32_does(tmp_path, precision):
    """The same batches, times and noise: the curves may part by rounding alone."""
    train(tmp_path / "fp32", budget=HERE)
    train(tmp_path / precision, budget=replace(HERE, precision=precision))
    one, two = losses(tmp_path / "fp32"), losses(tmp_path / precision)
    assert len(one) == HERE.max_steps
    assert two == pytest.approx(one, rel=0.05)


def test_meaning_of_auto_on_this_device():
    assert compiles(replace(BUDGET, accelerator="auto")) == CUDA
    if CUDA:
        assert has_bf16(DEVICE) == (torch.cuda.get_device_capability() >= (8, 0))


def test_the_card_builds_a_model_on_this_device():
    assert next(CARD.build().to(DEVICE).parameters()).device.type == DEVICE.type
