"""Archives of weights (`torch.save`): read without running code, whole or not at all."""

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
"""Bytes of what an archive holds beside its tensors; that of a training takes less than a hundredth of it."""
_SLACK = 1 << 20
_FOLDER = 0x10
"""The attribute of a folder in an archive: torch reads nothing of it, and hands out what memory held before."""


def read_archive(path: Path, what: str, remedy: str) -> Any:
    """The contents of an archive: tensors, mapped from the disk, and plain values.

    Every byte of it is held against the check sums, which torch writes and does not look at. Nothing in it may be
    packed or larger than the file, so that a small file cannot ask for much memory.

    Args:
        path: the file.
        what: what it should be, for messages: "checkpoint".
        remedy: what the user is advised to do where it is damaged.

    Raises:
        UserError: it cannot be read, is cut short, damaged or no archive of this kind.
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
            raise UserError(f"{path}: not a whole {what} ({reason:.120})", remedy) from error


def load_weights(module: nn.Module, weights: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Give a module its weights, if they are exactly what it needs.

    Raises:
        UserError: a tensor is missing, or one too many, or has another shape or type; the file is named.
    """
    if (problem := misfit(module.state_dict(), weights)) is not None:
        raise UserError(f"{path}: {problem}", remedy)
    module.load_state_dict(weights)


def misfit(expected: Mapping[str, Tensor], weights: Any) -> str | None:
    """Say what is wrong with weights where a module expects others of the same names; None: nothing is."""
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
    """Refuse what an optimiser restored from a file where it does not fit the weights that it is of.

    Raises:
        UserError: the file is named.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                for name, value in optimizer.state.get(weight, {}).items():
                    if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
                        shapes = f"{tuple(value.shape)} for a weight of shape {tuple(weight.shape)}"
                        raise UserError(f"{path}: the optimiser's {name} is {shapes}", remedy)


def _storages(contents: Any) -> dict[int, int]:
    """Bytes of the memory behind all tensors, by its address: tensors may share it."""
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
    """Refuse parts that are damaged or larger than the file; returns the bytes of those that hold tensors."""
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise zipfile.BadZipFile("its parts are packed, or overlap")
    for part in parts:
        if part.external_attr & _FOLDER:
            raise zipfile.BadZipFile(f"{part.filename} is marked as a folder")
        if part.filename.endswith("/data.pkl"):
            if part.file_size > LARGEST_PICKLE:
                raise zipfile.BadZipFile(f"{part.filename} takes {part.file_size >> 20} MiB")
            # The one plain type that torch makes of any size without reading its content.
            if b"bytearray" in archive.read(part):
                raise zipfile.BadZipFile(f"{part.filename} holds a bytearray")
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"bad check sum of {damaged}")
    return sum(part.file_size for part in parts if "/data/" in part.filename)
