"""Reads archives of weights (`torch.save`) without running code from them, and refuses damaged ones."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medaug.errors import UserError
from medaug.inputs import opened

LARGEST_PICKLE = 64 << 20
"""Maximum bytes of an archive's pickle (everything but its tensors); medaug's take less than a hundredth of it."""
_SLACK = 1 << 20
_FOLDER = 0x10
"""Marks a folder in an archive; torch does not read a part with this mark and returns uninitialised memory."""


def read_archive(path: Path, what: str, remedy: str) -> Any:
    """Read an archive: memory-mapped tensors and plain values.

    Every byte is checked against the archive's checksums, which torch writes but does not verify. No part may be
    compressed or larger than the file, so that a small file cannot allocate much memory.

    Args:
        path: the file.
        what: what the file should be, for messages, such as "checkpoint".
        remedy: what the user should do if it is damaged.

    Raises:
        UserError: the file cannot be read, is truncated or damaged, or is not such an archive.
    """
    with opened(path, remedy) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                held = _check_parts(archive, os.fstat(file.fileno()).st_size)
            contents = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)
            if held > sum(_storages(contents).values()) + _SLACK:
                raise zipfile.BadZipFile("its parts hold more than its tensors")
            return contents
        except Exception as error:  # damaged bytes make the unpickler raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"not a whole {what} ({reason:.120})", remedy, path=path) from error


def load_weights(module: nn.Module, weights: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Load weights into a module if they match it exactly.

    Raises:
        UserError: a tensor is missing, unexpected, or has the wrong shape or type; names the file.
    """
    if (problem := misfit(module.state_dict(), weights)) is not None:
        raise UserError(problem, remedy, path=path)
    module.load_state_dict(weights)


def misfit(expected: Mapping[str, Tensor], weights: Any) -> str | None:
    """Describe the first difference between the weights and those that a module expects; None if they match."""
    if not isinstance(weights, Mapping):
        return "holds no weights"
    if missing := expected.keys() - weights.keys():
        return f"lacks {len(missing)} of {len(expected)} tensors ({min(missing)})"
    if extra := weights.keys() - expected.keys():
        return f"holds {len(extra)} tensors too many ({min(map(str, extra))})"
    for name, tensor in expected.items():
        found = weights[name]
        if not isinstance(found, Tensor):
            return f"{name} is not a tensor"
        if found.shape != tensor.shape or found.dtype != tensor.dtype or found.layout != tensor.layout:
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (found, tensor)]
            return f"{name} is {kinds[0]}, and the model needs {kinds[1]}"
        if found.untyped_storage().nbytes() > max(2 * tensor.nbytes, _SLACK):
            return f"{name} is a small part of {found.untyped_storage().nbytes() >> 20} MiB"
    return None


def check_optimizers(optimizers: Iterable[Optimizer], path: Path, remedy: str) -> None:
    """Refuse optimiser state from a file if its shapes do not match the weights.

    Raises:
        UserError: names the file.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                for name, value in optimizer.state.get(weight, {}).items():
                    if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
                        shapes = f"{tuple(value.shape)} for a weight of shape {tuple(weight.shape)}"
                        raise UserError(f"the optimiser's {name} is {shapes}", remedy, path=path)


def _storages(contents: Any) -> dict[int, int]:
    """Address to size in bytes of the memory of all tensors; several tensors may share memory."""
    if isinstance(contents, Tensor):
        if contents.layout != torch.strided:
            return {}
        storage = contents.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    parts = contents.values() if isinstance(contents, Mapping) else contents
    if not isinstance(contents, Mapping | list | tuple):
        return {}
    return {address: size for part in parts for address, size in _storages(part).items()}


def _check_parts(archive: zipfile.ZipFile, size: int) -> int:
    """Refuse parts that are damaged or larger than the file; returns the total bytes of those that hold tensors."""
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise zipfile.BadZipFile("its parts are compressed, or overlap")
    for part in parts:
        if part.external_attr & _FOLDER:
            raise zipfile.BadZipFile(f"{part.filename} is marked as a folder")
        if part.filename.endswith("/data.pkl"):
            if part.file_size > LARGEST_PICKLE:
                raise zipfile.BadZipFile(f"{part.filename} takes {part.file_size >> 20} MiB")
            # The only plain type that torch creates with any size without reading its content.
            if b"bytearray" in archive.read(part):
                raise zipfile.BadZipFile(f"{part.filename} holds a bytearray")
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"bad checksum of {damaged}")
    return sum(part.file_size for part in parts if "/data/" in part.filename)
