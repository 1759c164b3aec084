"""Spacings: how the time steps of a sampler are distributed, for a process and a number of steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medaug.diffusion.process import Process
from medaug.diffusion.schedules import RHO
from medaug.tables import Table

Spacing = Callable[[Process, int], Tensor]
"""A function of the process and the number of steps N >= 1 that returns the times: float64 (N + 1,), strictly
decreasing from 1 to exactly 0. It raises ValueError, with the remedy, for a process that it cannot be used with."""


def trailing(process: Process, steps: int) -> Tensor:
    """Times 1 - k/N for k = 0 ... N, shifted; they include the noisiest time (Lin et al. 2024, section 3.3)."""
    return process.schedule.shifted(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


def uniform(process: Process, steps: int) -> Tensor:
    """N evenly spaced times from 1 to the schedule's least time, shifted, then 0."""
    return _closed(
        process.schedule.shifted(torch.linspace(1.0, process.schedule.least_time, steps, dtype=torch.float64))
    )


def karras(process: Process, steps: int) -> Tensor:
    """N times from 1 to the least time, evenly spaced in the seventh root of sigma / alpha, then 0.

    Karras et al. 2022, eq. 5.

    Raises:
        ValueError: sigma / alpha is infinite at t = 1.
    """
    if process.schedule.ends_in_pure_noise:
        raise ValueError(
            f"spacing karras cannot be used with {process.schedule.title}: sigma / alpha is infinite at t = 1; use "
            "trailing or uniform"
        )
    ends = torch.tensor([1.0, process.schedule.least_time], dtype=torch.float64)
    first, last = ((process.sigma(ends) / process.alpha(ends)) ** (1 / RHO)).tolist()
    return _closed(_time_of(process, torch.linspace(first, last, steps, dtype=torch.float64) ** RHO))


SPACINGS: Table[Spacing] = Table(
    "spacings",
    "spacing",
    Callable,  # type: ignore[arg-type]  # an abstract class, for isinstance
    key="sampler.spacing",
)


def _closed(grid: Tensor) -> Tensor:
    """N times with the first set to exactly 1, followed by an exact 0: (N + 1,)."""
    return torch.cat([torch.ones(1, dtype=torch.float64), grid[1:], torch.zeros(1, dtype=torch.float64)])


def _time_of(process: Process, ratio: Tensor) -> Tensor:
    """The times at which sigma / alpha has the given values (float64, any shape), found by bisection."""
    low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
    for _ in range(60):
        middle = (low + high) / 2
        below = process.sigma(middle) < ratio * process.alpha(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
