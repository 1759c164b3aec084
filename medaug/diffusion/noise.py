"""Noise that is a function of a name: every draw has a seed, every sample a generator of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def named_seed(root: int, *names: str | int) -> int:
    """A seed in [0, 2^63): a function of the root seed and the names alone, the same on every machine.

    `named_seed(7, "generate", 12)` names the draw; different names give unrelated seeds.
    """
    digest = hashlib.sha256(json.dumps([root, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed: the CPU's stream is the same whatever device the samples are made on."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def standard_normal(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise, float32 (B, *shape), sample i drawn from generators[i] alone.

    A sample therefore depends on its seed, and not on the batch that it is made in.
    """
    draws = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(draws).to(device)
