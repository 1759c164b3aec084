"""Objects and comparisons that several folders of tests use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medaug.diffusion.guidance import Guidance
from medaug.diffusion.process import Process
from medaug.diffusion.samplers import Sampling
from medaug.training.model import Context, DiffusionModel


def model_options(process: dict[str, Any] | None = None, codec: str = "haar", **network: Any) -> dict[str, Any]:
    """Plain options of a model that is built in milliseconds."""
    small = {
        "spatial_dims": 3,
        "channels": [8, 8],
        "attention": [False, False],
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 4,
    }
    return {
        "codec": {"name": codec},
        "network": small | network,
        "process": process or {"noise_schedule": "rectified_flow", "prediction_type": "flow"},
        "trainer": {"precision": "fp32"},
    }


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Check that two checkpoints have the same weights, averages, optimiser, scheduler and step, bit for bit."""
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    for part in parts:
        one, two = leaves(a[part]), leaves(b[part])
        assert one.keys() == two.keys()
        for key, value in one.items():
            same = torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
            assert same, f"{part}{key}"


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, child in items for key, leaf in leaves(child, f"{path}/{name}").items()}
    return {path: value}


def samples(
    model: DiffusionModel,
    label: Tensor,
    seeds: Sequence[int],
    *,
    sampler: str,
    num_inference_steps: int,
    guidance_scale: float = 1.0,
    context: Context | None = None,
    **more: Any,
) -> Tensor:
    """`DiffusionModel.sample` with the values of a command line."""
    sampling = Sampling(sampler, num_inference_steps, more.pop("spacing", "trailing"), more.pop("eta", 0.0))
    guidance = Guidance(guidance_scale, *(more.pop(key, default) for key, default in GUIDANCE))
    return model.sample(label, seeds, sampling, guidance, context or Context(), **more)


GUIDANCE = (("guidance_interval", None), ("guidance_rescale", 0.0), ("negative_classes", ()))


def times(steps: int) -> Tensor:
    """Trailing times from 1 to 0, as a schedule without a shift has them."""
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def spaced_times(process: Process, steps: int, spacing: str = "trailing") -> Tensor:
    """The times of a sampling."""
    return Sampling(steps=steps, spacing=spacing).times(process)
