"""The keys of `Options`: their types and limits, and what is wrong with a value.

Free of torch and numpy, as `medaug.options` is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_origin, get_type_hints

from medaug.errors import UserError
from medaug.options import Options


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of `Options`.

    Attributes:
        path: dotted.
        hint: type.
        default: value.
        help: its help line.
        identity: whether a result depends on it.
        least, above, most: limits of the number, or of each number of a list.
        fewest: values that a list needs.
        needs: path of the key without which this one has no effect; `unless`: of the key with which it has none.
        is_path: whether it names files or folders.
    """

    path: str
    hint: Any
    default: Any
    help: str
    identity: bool
    least: float | None
    above: float | None
    most: float | None
    fewest: int
    needs: str | None
    unless: str | None
    is_path: bool


def keys() -> dict[str, Key]:
    """All keys of `Options` by dotted path."""
    found: dict[str, Key] = {}

    def walk(options: Any, prefix: str) -> None:
        hints = get_type_hints(type(options))
        for field in dataclasses.fields(options):
            path, default = prefix + field.name, getattr(options, field.name)
            if dataclasses.is_dataclass(default):
                walk(default, path + ".")
            else:
                found[path] = Key(path, hints[field.name], default, **field.metadata)

    walk(Options(), "")
    return found


def type_name(hint: Any) -> str:
    """A type in words, such as "list of number"."""
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return f"list of {type_name(arguments[0])}"
    if arguments:
        return " or ".join("null" if a is type(None) else type_name(a) for a in arguments)
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[hint.__name__]


def fits(value: Any, hint: Any) -> bool:
    """Whether a parsed value has a key's type: stricter than OmegaConf, for which 3 is a way to say true."""
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_args(hint):
        return any(fits(value, one) for one in get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)


def problem(key: Key, value: Any) -> str | None:
    """What is wrong with a value: its type, NaN or infinity, the key's limits; None where nothing is."""
    if not fits(value, key.hint):
        return f"expected {type_name(key.hint)}"
    if isinstance(value, list) and len(value) < key.fewest:
        return f"at least {key.fewest} {'value is' if key.fewest == 1 else 'values are'} needed"
    numbers = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int | float)]
    for number in numbers:
        if not math.isfinite(number):
            return "expected a finite number, not NaN or infinity"
        if key.least is not None and number < key.least:
            return f"must be at least {key.least:g}"
        if key.above is not None and number <= key.above:
            return f"must be above {key.above:g}"
        if key.most is not None and number > key.most:
            return f"must be at most {key.most:g}"
    return None


def shown(value: Any) -> str:
    """A value as a command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def check_values(options: Options, stage: str) -> None:
    """Refuse values that no key may have, wherever they were set, and keys that have no effect beside the others.

    Args:
        options: to check.
        stage: whose own keys are named without their prefix.

    Raises:
        UserError: names the key, its value, what is wrong, and the way out.
    """

    def value_of(path: str) -> Any:
        value: Any = options
        for name in path.split("."):
            value = getattr(value, name)
        return value

    for key in keys().values():
        value = value_of(key.path)
        said = f"{key.path.removeprefix(stage + '.')}={shown(value)}"
        if (wrong := problem(key, value)) is not None:
            raise UserError(f"{said}: {wrong}")
        if value == key.default:
            continue
        if key.needs is not None and value_of(key.needs) is None:
            raise UserError(
                f"{said}: has no effect without {key.needs.removeprefix(stage + '.')}; give both or neither"
            )
        if key.unless is not None and value_of(key.unless) is not None:
            raise UserError(f"{said}: has no effect with {key.unless.removeprefix(stage + '.')}; leave one of them out")
