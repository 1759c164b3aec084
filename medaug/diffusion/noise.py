"""Reproducible noise: seeds that follow from names, and one generator per sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def named_seed(root: int, *names: str | int) -> int:
    """A seed in [0, 2^63) that depends on the root seed and the names alone, and is the same on every machine.

    For example `named_seed(7, "generate", 12)`. Different names give unrelated seeds.
    """
    digest = hashlib.sha256(json.dumps([root, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per seed, on the CPU, so that the numbers do not depend on the device that samples."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def standard_normal(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise, float32 (B, *shape); sample i comes from generators[i] alone.

    A sample therefore depends on its seed and not on its batch.
    """
    draws = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(draws).to(device)
