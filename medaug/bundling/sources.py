"""The modules of medaug that a bundle needs: those that its entry point imports, and the entries of tables."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from medaug.entries import OWN

TABLES = ("samplers", "spacings", "schedules", "predictions", "loss_weights", "codecs", "networks")
"""Tables whose entries a model looks up by name."""


def needed_sources(entry: str) -> dict[str, bytes]:
    """The source files of a module and of everything in medaug that it imports.

    The paths are relative to the folder that holds the package.

    Imports anywhere in a file count, except those for type checkers.

    Args:
        entry: name of the module.
    """
    package = Path(str(files("medaug")))
    waiting = [entry, *(where.split(":")[0] for table in TABLES for where in OWN[table].values())]
    found: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        path = _file(package.parent, name)
        if path is None or (key := path.relative_to(package.parent).as_posix()) in found:
            continue
        found[key] = path.read_bytes()
        waiting += _imports(ast.parse(found[key]))
        parent, _, _ = name.rpartition(".")
        waiting += [parent] if parent else []
    return dict(sorted(found.items()))


def _file(root: Path, name: str) -> Path | None:
    if name.split(".")[0] != "medaug":
        return None
    stem = root.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in _run_time(ast.iter_child_nodes(tree)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_time(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _run_time(ast.iter_child_nodes(node))
