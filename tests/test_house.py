"""Limits on the size of folders, files, functions and signatures; pyproject.toml has the order of imports."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from medaug.stages import STAGES

PACKAGE = Path(__file__).parents[1] / "medaug"
FILES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES, STAGE_LINES, FUNCTION_LINES, ARGUMENTS, ROOM_SHARE = 400, 100, 60, 8, 1 / 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
    """Every function and method below a node, nested ones included, with its dotted name."""
    for child in ast.iter_child_nodes(node):
        inner = f"{name}.{child.name}" if isinstance(child, Function | ast.ClassDef) else name
        if isinstance(child, Function):
            yield inner, child
        yield from functions(child, inner)


@functools.cache
def all_functions() -> list[tuple[str, Function]]:
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES]
    return [
        one for name, path in zip(names, FILES, strict=True) for one in functions(ast.parse(path.read_bytes()), name)
    ]


def num_arguments(function: Function) -> int:
    given = function.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"])) + (given.vararg is not None) + (given.kwarg is not None)


def num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def test_no_file_is_too_long() -> None:
    assert [path.name for path in FILES if num_lines(path) > FILE_LINES] == []


def test_no_stage_is_too_long() -> None:
    assert [name for name in STAGES if num_lines(PACKAGE / f"{name}.py") > STAGE_LINES] == []


def test_no_folder_is_above_a_sixth_of_the_package() -> None:
    lines = Counter[str]()
    for path in FILES:
        lines[path.relative_to(PACKAGE).parts[0]] += num_lines(path)
    assert [name for name, count in lines.items() if count > ROOM_SHARE * lines.total()] == []


def test_no_function_is_too_long() -> None:
    long = {name for name, node in all_functions() if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES}
    assert long == set()


def test_no_function_takes_too_many_arguments() -> None:
    assert {name for name, node in all_functions() if num_arguments(node) > ARGUMENTS} == set()


@pytest.mark.parametrize(
    ("source", "count"), [("def f(a, /, b, *c, d, **e): ...", 5), ("class A:\n  def f(self, b): ...", 1)]
)
def test_arguments_are_counted_without_self(source: str, count: int) -> None:
    [(_, function)] = functions(ast.parse(source), "m")
    assert num_arguments(function) == count
