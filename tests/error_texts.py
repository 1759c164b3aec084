"""Finds code that treats our own errors and findings as text: searches of it, and remedies written into `what`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

_FIELDS = {"what", "remedy", "statement", "full", "detail"}
_METHODS = {
    *("count", "endswith", "find", "index", "partition", "removeprefix", "removesuffix", "replace"),
    *("rfind", "rindex", "rpartition", "rsplit", "split", "splitlines", "startswith"),
}
_COMPARED = (ast.In, ast.NotIn, ast.Eq, ast.NotEq)
_OURS = ("UserError", "PixelError", "Finding")


def text_searches(source: str) -> Iterator[str]:
    """Yield the searches of error texts in a module, each as "line: code".

    An error's text is `what`, `remedy`, `statement`, `full` or `detail` of anything, `str` or an f-string of a variable
    that is a UserError or a Finding (caught, annotated or built as one), and a variable that holds such a text. It may
    not be searched by a method of `str`, by `in` or `==`, by a slice or by the module `re`.
    """
    if not any(word in source for word in (*_OURS, *(f".{field}" for field in _FIELDS))):
        return
    for scope in _scopes(ast.parse(source)):
        errors = _errors(scope)
        texts: set[str] = set()
        for node in scope:
            if isinstance(node, ast.Assign) and _is_text(node.value, errors, texts):
                texts |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for node in scope:
            if _searches(node, errors, texts):
                yield f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


def remedies_in_what(source: str) -> Iterator[str]:
    """Yield the errors and findings of a module whose `what` also holds the remedy, each as "line: code".

    That is a "; " outside of brackets in the literals of the argument `what`, or of a variable of the same function
    that the argument contains.
    """
    if not any(word in source for word in _OURS):
        return
    for scope in _scopes(ast.parse(source)):
        texts = {
            target.id: _literals(node.value)
            for node in scope
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in scope:
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OURS):
                continue
            position = 3 if node.func.id == "Finding" else 0
            whats = [*node.args[position : position + 1], *(word.value for word in node.keywords if word.arg == "what")]
            if any("; " in re.sub(r"\([^()]*\)", "", _literals(what, texts)) for what in whats):
                yield f"{node.lineno}: {ast.unparse(node)}"


def option_checks(source: str) -> Iterator[str]:
    """Yield the errors of a module that refuse a single value of an option, as `medaug.keys` does for every option."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"UserError", "ValueError"}
        ):
            text = "".join(_literals(argument) for argument in node.args[:1])
            if re.search(r"[=_]_: (must be|not one of|at least|has no effect)", text):
                yield f"{node.lineno}: {ast.unparse(node)}"


def _literals(node: ast.expr, texts: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text that an expression builds, with "_" for what only running it tells."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return texts.get(node.id, "_")
    if isinstance(node, ast.FormattedValue):
        return _literals(node.value, texts)
    if isinstance(node, ast.JoinedStr):
        return "".join(_literals(value, texts) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _literals(node.left, texts) + _literals(node.right, texts)
    if isinstance(node, ast.IfExp):
        return _literals(node.body, texts) + _literals(node.orelse, texts)
    return "_"


def _scopes(module: ast.Module) -> Iterator[list[ast.AST]]:
    """The nodes of each outermost function or method, and those outside of all."""
    outside: list[ast.AST] = []
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield list(ast.walk(node))
        else:
            outside.append(node)
            waiting += ast.iter_child_nodes(node)
    yield outside


def _errors(scope: list[ast.AST]) -> set[str]:
    """The variables of a scope that hold a UserError or a Finding."""
    names = set()
    for node in scope:
        if isinstance(node, ast.ExceptHandler) and node.name and node.type and _is_ours(node.type):
            names.add(node.name)
        if isinstance(node, ast.arg) and node.annotation and _is_ours(node.annotation):
            names.add(node.arg)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _is_ours(node.value.func):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _is_ours(node: ast.expr) -> bool:
    return any(isinstance(one, ast.Name) and one.id in _OURS for one in ast.walk(node))


def _is_text(node: ast.expr, errors: set[str], texts: set[str]) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in _FIELDS
    if isinstance(node, ast.Name):
        return node.id in texts
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"str", "repr", "printable"}:
        return any(_is_error(one, errors) or _is_text(one, errors, texts) for one in node.args)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_text(node.func.value, errors, texts)
    if isinstance(node, ast.JoinedStr):
        values = [one.value for one in node.values if isinstance(one, ast.FormattedValue)]
        return any(_is_error(one, errors) for one in values)
    if isinstance(node, ast.Subscript):
        arguments = node.value
        return isinstance(arguments, ast.Attribute) and arguments.attr == "args" and _is_error(arguments.value, errors)
    return False


def _is_error(node: ast.expr, errors: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in errors


def _searches(node: ast.AST, errors: set[str], texts: set[str]) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in _METHODS and _is_text(node.func.value, errors, texts):
            return True
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "re":
            return any(_is_text(one, errors, texts) for one in node.args)
    if isinstance(node, ast.Compare) and any(isinstance(operator, _COMPARED) for operator in node.ops):
        return any(_is_text(one, errors, texts) for one in (node.left, *node.comparators))
    return isinstance(node, ast.Subscript) and _is_text(node.value, errors, texts)
