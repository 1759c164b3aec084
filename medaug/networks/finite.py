"""Finds NaN and infinite values in weights and outputs; a training that diverged leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def not_finite(contents: Any, name: str = "") -> str | None:
    """The name of the first tensor with a NaN or infinite value; None if there is none.

    Args:
        contents: tensors in mappings and sequences, such as a state dict. If a tensor is split over processes, only
            this process's part is checked.
        name: name of `contents` itself.
    """
    if isinstance(contents, Tensor):
        values = contents.to_local() if isinstance(contents, DTensor) else contents
        return None if bool(torch.isfinite(values).all()) else name
    if isinstance(contents, Mapping):
        parts = list(contents.items())
    elif isinstance(contents, list | tuple):
        parts = list(enumerate(contents))
    else:
        return None
    found = (not_finite(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((one for one in found if one is not None), None)
