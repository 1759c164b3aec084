"""The keys of `Options`: their declarations, the check of a value, and the description of both in words.

Like `medaug.options`, this module does not import torch or numpy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from medaug.errors import UserError
from medaug.options import Options
from medaug.options.declaration import Choices, Items, Range, When
from medaug.tables import did_you_mean, entry_names


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of `Options`.

    Attributes:
        path: dotted path, such as "trainer.seed".
        hint: type of the value.
        default: default value.
        help: help line.
        choices, limits, items, applies_when, identity, is_path: see `medaug.options.declaration.option`; the keys of
            `applies_when` have their full paths.
    """

    path: str
    hint: Any
    default: Any
    help: str
    choices: Choices
    limits: Range
    items: Items
    applies_when: tuple[When, ...]
    identity: bool | None
    is_path: bool


@cache
def keys() -> Mapping[str, Key]:
    """All keys of `Options` by dotted path; keys that a group shares with another one come after its own."""
    found: dict[str, Key] = {}

    def walk(options: Any, prefix: str) -> None:
        hints, own = get_type_hints(type(options)), type(options).__annotations__
        fields = dataclasses.fields(options)
        names = {field.name for field in fields}
        for field in sorted(fields, key=lambda field: field.name not in own):
            path, default = prefix + field.name, getattr(options, field.name)
            if dataclasses.is_dataclass(default):
                walk(default, path + ".")
                continue
            conditions = tuple(
                when if "." in when.key else dataclasses.replace(when, key=prefix + when.key)
                for when in field.metadata["applies_when"]
                if "." in when.key or when.key in names
            )
            about = {**field.metadata, "applies_when": conditions}
            found[path] = Key(path, hints[field.name], default, **about)

    walk(Options(), "")
    return found


def names(choices: Choices) -> list[str | int]:
    """All valid names, those of installed packages last; empty if any name is valid."""
    entries = (name for name in entry_names(choices.table) if name not in choices.without) if choices.table else ()
    return [*choices.names, *entries]


def type_name(hint: Any) -> str:
    """A type in words, such as "list of numbers"."""
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return f"list of {type_name(arguments[0])}" + ("s" if arguments[0] in {int, float} else "")
    if arguments:
        return " or ".join("null" if a is type(None) else type_name(a) for a in arguments)
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[hint.__name__]


def values_text(key: Key) -> str:
    """The valid values in words: "integer, at least 1", "cosine|constant", "list of numbers, 2 ascending values"."""
    allowed = "|".join(str(name) for name in names(key.choices))
    kind = type_name(key.hint)
    if allowed:
        kind = kind.replace("text", allowed).replace("integers", allowed).replace("integer", allowed)
    each = "each " if "list" in kind and str(key.limits) else ""
    return ", ".join(part for part in (kind, str(key.items), f"{each}{key.limits}") if part)


def condition_text(key: Key, stage: str = "") -> str:
    """When a key has an effect, in words: "only with codec=kl, not with codec.checkpoint"; empty if it always has."""
    return ", ".join(
        f"{'not' if when.not_ else 'only'} with {str(when).removeprefix(stage + '.')}" for when in key.applies_when
    )


def fits(value: Any, hint: Any) -> bool:
    """Whether a parsed value has a key's type; stricter than OmegaConf, which accepts 3 for true."""
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_args(hint):
        return any(fits(value, one) for one in get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)


def problem(key: Key, value: Any) -> str | None:
    """What is wrong with a value, regardless of other keys; None if it is valid."""
    if not fits(value, key.hint):
        return f"expected {type_name(key.hint)}"
    if value is None:
        return None
    several = isinstance(value, list)
    for item in value if several else [value]:
        if (allowed := names(key.choices)) and item not in allowed:
            return f"{f'{item} is ' if several else ''}not one of {', '.join(map(str, allowed))}"
        if isinstance(item, int | float):
            if not math.isfinite(item):
                return "expected a finite number, not NaN or infinity"
            if item not in key.limits:
                return f"must be {key.limits}"
    return key.items.problem(value) if several else None


def refuse(key: Key, value: Any, text: str) -> None:
    """Raise an error if the key may not have this value, whatever the other keys are.

    Args:
        key: declaration of the key.
        value: the value to check.
        text: key and value as the message shows them.

    Raises:
        UserError: says what is wrong, and names the nearest choice.
    """
    if (wrong := problem(key, value)) is not None:
        allowed = [str(name) for name in names(key.choices)]
        unknown = [str(item) for item in (value if isinstance(value, list) else [value]) if str(item) not in allowed]
        raise UserError(f"{text}: {wrong}", did_you_mean(unknown[0], allowed) if unknown else "")


def shown(value: Any) -> str:
    """A value as it is written on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def value_of(options: Options, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = options
    for name in path.split("."):
        value = getattr(value, name)
    return value


def check_values(options: Options, stage: str, given: Collection[str] = ()) -> None:
    """Refuse invalid values, wherever they were set, and keys of the command line that have no effect.

    Args:
        options: the options to check.
        stage: stage whose own keys are named without their prefix.
        given: paths of the keys that the command line sets. Keys set in a configuration file may have no effect,
            because the file is used with several command lines.

    Raises:
        UserError: names the key, its value, what is wrong, and the remedy.
    """
    for key in keys().values():
        value = value_of(options, key.path)
        text = f"{key.path.removeprefix(stage + '.')}={shown(value)}"
        refuse(key, value, text)
        if value == key.default or key.path not in given:
            continue
        for when in key.applies_when:
            if not when.holds(value_of(options, when.key)):
                other = str(when).removeprefix(stage + ".")
                remedy = (
                    "leave one of them out" if when.not_ else "leave it out" if when.values else "give both or neither"
                )
                raise UserError(f"{text}: has no effect {'with' if when.not_ else 'without'} {other}", remedy)


def check_stored(options: Mapping[str, Mapping[str, Any]], *parts: str) -> None:
    """Refuse invalid values in options that come from a file instead of a command line.

    Args:
        options: values by group and name. Missing keys, and keys that no longer exist, are not checked.
        parts: groups or single keys to check (`"codec"`, `"trainer.precision"`).

    Raises:
        UserError: names the key, its value and what is wrong.
    """
    for key in keys().values():
        group, _, name = key.path.partition(".")
        if (group in parts or key.path in parts) and name in options.get(group, {}):
            value = options[group][name]
            value = list(value) if isinstance(value, tuple) else value
            refuse(key, value, f"{key.path}={shown(value)}")
