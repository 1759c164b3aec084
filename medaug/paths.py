"""Folders that come with the package, and the expansion of `~` and variables in options that are paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from medaug.errors import UserError
from medaug.keys import keys
from medaug.options import Options

_FOLDERS = {
    "train": "train",
    "generate": "synthetic",
    "predict": "predictions",
    "audit": "audit",
    "benchmark": "benchmark",
    "tuning": "tuning",  # a benchmark on validation subjects
}


def set_of_pairs(options: Options) -> str | None:
    """The name of the set of pairs that a stage works on; None: the set without a name.

    Raises:
        UserError: it is not a name.
    """
    named = (
        options.generate.name,
        options.audit.name,
        options.benchmark.name,
        options.export.name,
        options.gallery.name,
    )
    name = next((one for one in named if one is not None), None)
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"name={name}: is not a name", "use letters, digits, point, _ and -")
    return name


def stage_folder(options: Options, stage: str) -> Path:
    """The folder that a stage writes to: `runs/<experiment>/{train,synthetic,predictions,audit,benchmark,tuning}`.

    What depends on the pairs has the name of their set at its end: `synthetic-NAME`, `audit-NAME`.

    Raises:
        UserError: as for `set_of_pairs`.
    """
    name = set_of_pairs(options)
    named = "" if name is None or stage in {"train", "predict"} else f"-{name}"
    return Path(options.runs) / options.experiment / f"{_FOLDERS[stage]}{named}"


def of_same_pairs(folder: Path, stage: str) -> Path:
    """The folder of another stage for the same set of pairs, such as `audit-NAME` for `benchmark-NAME`."""
    _, dash, name = folder.name.partition("-")
    return folder.with_name(f"{_FOLDERS[stage]}{dash}{name}")


def sets_of_pairs(folder: Path, name: str) -> list[Path]:
    """What a stage wrote for every set of pairs of an experiment: its folder, and those with the name of a set.

    Args:
        folder: folder of the experiment.
        name: name of the stage's folder, such as "audit".
    """
    return [folder / name, *sorted(folder.glob(f"{name}-*"))]


def _shipped(folder: str) -> Path:
    """A folder inside the installed package, or beside the package in a source checkout."""
    package = Path(__file__).resolve().parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def conf_dir() -> Path:
    """The folder of the configuration files."""
    return _shipped("conf")


def own_conf_dir() -> Path | None:
    """The user's own configuration files: `conf` in the folder in which the command runs; None if there is none."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and not folder.samefile(conf_dir()) else None


def conf_files(group: str, name: str = "*") -> list[Path]:
    """The files of a group of choices, medaug's before the user's; with a name, those of that choice."""
    folders = [folder for folder in (conf_dir(), own_conf_dir()) if folder is not None]
    return [path for folder in folders for path in sorted((folder / group).glob(f"{name}.yaml"))]


def manifests_dir() -> Path:
    """The folder of the manifests that experiments name."""
    return _shipped("data_manifests")


def expand_paths(options: Options) -> None:
    """Expand `~` and `$NAME` in every option that is a path, whether it comes from a file or the command line.

    Relative paths stay relative to the folder in which the command is run.

    Raises:
        UserError: a path is empty, contains a null byte, or names an unknown user or variable.
    """
    for key in keys().values():
        if not key.is_path:
            continue
        *nodes, leaf = key.path.split(".")
        node: Any = options
        for name in nodes:
            node = getattr(node, name)
        value = getattr(node, leaf)
        if isinstance(value, list):
            setattr(node, leaf, [expanded(key.path, item) for item in value])
        elif value is not None:
            setattr(node, leaf, expanded(key.path, value))


def expanded(key: str, text: str) -> str:
    """A path with `~` and variables expanded; `key` is the name for error messages."""
    if not text or "\0" in text:
        raise UserError(f"{key}={text}: {'is empty' if not text else 'is not a path'}", "give a path, or leave it out")
    path = os.path.expandvars(os.path.expanduser(text))
    if path.startswith("~"):
        raise UserError(f"{key}={text}: there is no such user", f"write ./{text} if that is the folder's real name")
    if unset := re.search(r"\$(\w+|\{\w+\})", path):
        raise UserError(f"{key}={text}: the variable {unset[0]} is not set", "set it, or write the path without it")
    return path


def without_references(value: Any) -> Any:
    """Escape `${NAME}` for OmegaConf, because in a path it is an environment variable."""
    if isinstance(value, list):
        return [without_references(item) for item in value]
    return re.sub(r"\$\{(?=\w+\})", r"\\${", value) if isinstance(value, str) else value
