"""Finds which options the code of a stage reads, by following `Options` through names, calls and constructors.

Followed are assignments, `getattr`, `replace`, `partial`, arguments of functions and of classes of this package (whose
attributes are then known in all their methods). Not followed are plain dictionaries made of the options.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import medaug
from medaug.keys import keys
from medaug.options import Options

Paths = frozenset[str]
Environment = dict[str, Paths]
Function = ast.FunctionDef
Place = tuple[str, ast.FunctionDef | ast.ClassDef | ast.Module]

ROOT = Path(medaug.__file__).parent
KEYS = frozenset(keys())
NODES = frozenset(path.split(".")[0] for path in KEYS if "." in path)
_TYPES = {node: type(getattr(Options(), node)).__name__ for node in NODES}


@cache
def _trees() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


@cache
def _definitions() -> Mapping[str, list[Function | ast.ClassDef]]:
    """All functions, methods and classes of each module, outer ones first."""
    return {
        module: [node for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef)]
        for module, tree in _trees().items()
    }


@cache
def _imported(module: str) -> Mapping[str, tuple[str, str]]:
    found = (node for node in ast.walk(_trees()[module]) if isinstance(node, ast.ImportFrom))
    return {name.asname or name.name: (node.module or "", name.name) for node in found for name in node.names}


def _definition(module: str, name: str) -> Place | None:
    """The function or class that a name stands for in a module, followed through the packages that pass it on."""
    if module not in _trees():
        module += ".__init__"
    if module not in _trees():
        return None
    if node := next((node for node in _definitions()[module] if node.name == name), None):
        return module, node
    origin = _imported(module).get(name)
    return None if origin is None else _definition(*origin)


@cache
def _methods(name: str) -> tuple[Place, ...]:
    classes = ((m, c) for m, nodes in _definitions().items() for c in nodes if isinstance(c, ast.ClassDef))
    return tuple((m, f) for m, c in classes for f in c.body if isinstance(f, Function) and f.name == name)


def _owner(module: str, value: ast.AST) -> Place | None:
    """The class or module that an expression names; for `cls`, the class of the method."""
    if not isinstance(value, ast.Name):
        return None
    if value.id == "cls":
        return _enclosing()[value]
    if (imported := ".".join(_imported(module).get(value.id, ("", "")))) in _trees():
        return imported, _trees()[imported]
    place = _definition(module, value.id)
    return place if place is not None and isinstance(place[1], ast.ClassDef) else None


@cache
def _enclosing() -> dict[ast.AST, Place]:
    """For every node within a class, that class."""
    return {
        node: (module, around)
        for module, nodes in _definitions().items()
        for around in nodes
        if isinstance(around, ast.ClassDef)
        for node in ast.walk(around)
    }


@cache
def _takers(annotation: str) -> tuple[tuple[Place, str], ...]:
    """Every function and method with a parameter of this type, and the parameter's name."""
    return tuple(
        ((module, node), argument.arg)
        for module, nodes in _definitions().items()
        for node in nodes
        if isinstance(node, Function)
        for argument in node.args.posonlyargs + node.args.args
        if argument.annotation is not None and ast.unparse(argument.annotation) == annotation
    )


class Reader:
    """Collects the keys that are read from one function on; see `reads`."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.words: set[str] = set()
        self._seen: set[tuple[int, frozenset[tuple[str, Paths]]]] = set()

    def follow(self, module: str, body: ast.AST, known: Environment) -> Environment:
        """Read a function with what its names are known to hold; returns what all its names hold."""
        key = (id(body), frozenset(known.items()))
        if key in self._seen:
            return known
        self._seen.add(key)
        known = dict(known)
        nodes = list(ast.walk(body))
        for _ in range(3):  # names may be assigned from names that are assigned further down
            for node in nodes:
                for target, value in _assigned(node):
                    if paths := self._paths(value, known):
                        known[ast.unparse(target)] = known.get(ast.unparse(target), Paths()) | paths
        entries = {ast.unparse(target) for node in nodes for target, value in _assigned(node) if _is_entry(value)}
        texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        self.words |= texts | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
        self.words |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        # A function with **options is called with a plain dictionary, whose keys are its arguments.
        functions = [n.args for n in nodes if isinstance(n, ast.FunctionDef) and n.args.kwarg]
        self.words |= {argument.arg for arguments in functions for argument in arguments.args}
        for node in nodes:
            if isinstance(node, ast.Attribute):
                self.read |= self._paths(node, known) & KEYS
            elif isinstance(node, ast.Call):
                self._call(module, node, known, texts, entries)
        return known

    def _paths(self, node: ast.AST, known: Environment) -> Paths:
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in known:
            return known[ast.unparse(node)]
        if isinstance(node, ast.Attribute):
            inner = self._paths(node.value, known)
            return Paths(p for p in (f"{base}.{node.attr}".lstrip(".") for base in inner) if p in KEYS | NODES)
        if isinstance(node, ast.IfExp):
            return self._paths(node.body, known) | self._paths(node.orelse, known)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "replace" and node.args:
            return self._paths(node.args[0], known)
        return Paths()

    def _call(self, module: str, call: ast.Call, known: Environment, texts: set[str], entries: set[str]) -> None:
        name = ast.unparse(call.func)
        if name == "getattr":
            tails = [call.args[1].value] if isinstance(call.args[1], ast.Constant) else sorted(texts)
            for base in self._paths(call.args[0], known):
                self.read |= {p for p in (f"{base}.{tail}".lstrip(".") for tail in tails) if p in KEYS}
            return
        arguments = call.args[1:] if name == "partial" else call.args
        function = call.args[0] if name == "partial" else call.func
        given = [(i, self._paths(argument, known)) for i, argument in enumerate(arguments)]
        given += [(word.arg, self._paths(word.value, known)) for word in call.keywords if word.arg]
        given = [(where, paths) for where, paths in given if paths]
        if given:
            for place in self._callees(module, function):
                self._enter(place, dict(given))
            if isinstance(function, ast.Attribute) and (
                _is_entry(function.value) or ast.unparse(function.value) in entries
            ):
                # An entry of a table may do with the options whatever takes options of that type.
                for _, paths in given:
                    for path in paths & NODES:
                        for place, name in _takers(_TYPES[path]):
                            self._enter(place, {name: Paths({path})})

    def _callees(self, module: str, function: ast.AST) -> Iterator[Place]:
        if isinstance(function, ast.Name):
            found = _owner(module, function) or _definition(module, function.id)
            yield from [found] if found else []
        elif isinstance(function, ast.Attribute) and (owner := _owner(module, function.value)):
            where, body = owner
            named = [node for node in body.body if isinstance(node, Function) and node.name == function.attr]
            yield from ((where, node) for node in named) if named else _methods(function.attr)
        elif isinstance(function, ast.Attribute):
            yield from _methods(function.attr)

    def _enter(self, place: Place, given: dict[int | str, Paths]) -> None:
        module, node = place
        if isinstance(node, Function):
            names = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
            self.follow(module, node, _bound(names, given))
            return
        methods = [method for method in node.body if isinstance(method, Function)]
        start = next((method for method in methods if method.name == "__init__"), None)
        if start is None:
            names = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            own = {f"self.{name}": paths for name, paths in _bound(names, given).items()}
        else:
            held = self.follow(module, start, _bound([a.arg for a in start.args.args[1:]], given))
            own = {name: paths for name, paths in held.items() if name.startswith("self.")}
        for method in methods:
            self.follow(module, method, own)


def _is_entry(node: ast.AST) -> bool:
    """Whether a node looks an entry up in a table, as in `CODECS[name]`."""
    return isinstance(node, ast.Subscript) and ast.unparse(node.value).isupper()


def _assigned(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts, strict=False)
            else:
                yield target, node.value
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value


def _bound(names: list[str], given: Mapping[int | str, Paths]) -> Environment:
    return {
        (where if isinstance(where, str) else names[where]): paths
        for where, paths in given.items()
        if isinstance(where, str) or where < len(names)
    }


@cache
def reads(stage: str) -> Reader:
    """What the code of a stage reads from its `main` on: keys by dotted path, and every word in its functions."""
    reader = Reader()
    place = _definition(f"medaug.{stage}", "main")
    assert place is not None
    reader.follow(*place, {"options": Paths({""})})
    return reader
