"""How an option is declared: its help line, its default, the values it may have, and when it has an effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """Limits of a number, or of each number of a list. NaN and infinity never lie within."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        """Whether the number keeps to every limit."""
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """Such as "at least 1", "between 0 and 1" or "above 0 and below 1"; empty without limits."""
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


@dataclass(frozen=True)
class Items:
    """What a list must look like as a whole.

    Attributes:
        fewest: least number of values.
        count: number of values, where only that many make sense.
        ascending: each value is above the one before.
        distinct: no value occurs twice.
    """

    fewest: int = 0
    count: int | None = None
    ascending: bool = False
    distinct: bool = False

    def problem(self, values: list[Any]) -> str | None:
        """What is wrong with a list; None where nothing is."""
        right = len(values) >= self.fewest if self.count is None else len(values) == self.count
        right = right and not (self.ascending and any(a >= b for a, b in zip(values, values[1:], strict=False)))
        right = right and not (self.distinct and len(set(values)) < len(values))
        return None if right else f"must have {self}"

    def __str__(self) -> str:
        """Such as "2 ascending values" or "at least 1 value, each given once"; empty where any list will do."""
        number = self.fewest if self.count is None else self.count
        kind = f"{'ascending ' if self.ascending else ''}value{'s' if number > 1 else ''}"
        counted = f"{'' if self.count else 'at least '}{number} {kind}" if number else "values" if self.distinct else ""
        return f"{counted}, each given once" if self.distinct else counted


@dataclass(frozen=True)
class Choices:
    """Names that an option may have: those listed, and those of a table (`medaug.tables`) except `without`."""

    names: tuple[str | int, ...] = ()
    table: str = ""
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class When:
    """An option has an effect only while another key has one of these values, or, if `not_`, none of them.

    Without values, only while the other key is set: neither null, false nor an empty list.

    Attributes:
        key: path of the other key; without a dot, a key beside the option itself. Where there is no such key, there is
            no condition.
    """

    key: str
    values: tuple[Any, ...] = ()
    not_: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the option has an effect while the other key has this value."""
        return (value in self.values if self.values else value not in (None, False, [])) != self.not_

    def __str__(self) -> str:
        """Such as "codec=kl" or "data.labelled"; without `not_`, which its reader puts into words."""
        name = self.key.removesuffix(".name")
        return name + (f"={'|'.join(f'{value}' for value in self.values)}" if self.values else "")


_ANY_NAME, _ANY_NUMBER, _ANY_LIST = Choices(), Range(), Items()


def only_with(key: str, *values: Any) -> When:
    """The option has an effect only while `key` is set, or has one of the values."""
    return When(key, values)


def not_with(key: str, *values: Any) -> When:
    """The option has no effect while `key` is set, or has one of the values."""
    return When(key, values, not_=True)


def at_least(least: float) -> Range:
    """Numbers from `least` up."""
    return Range(least=least)


def above(limit: float) -> Range:
    """Numbers above `limit`."""
    return Range(above=limit)


def between(least: float, most: float) -> Range:
    """Numbers from `least` to `most`, both included."""
    return Range(least=least, most=most)


def one_of(*names: str | int, table: str = "", without: tuple[str, ...] = ()) -> Choices:
    """These names, and those of a table's entries except `without`."""
    return Choices(names, table, without)


def option(
    help: str,
    default: Any,
    *,
    choices: Choices = _ANY_NAME,
    limits: Range = _ANY_NUMBER,
    items: Items = _ANY_LIST,
    applies_when: tuple[When, ...] = (),
    identity: bool | None = True,
    is_path: bool = False,
) -> Any:
    """A dataclass field that is a key of the configuration.

    All that the declaration says is checked in `medaug.keys`, printed by `--help` and written into the configuration
    reference, so the help line does not repeat it. What depends on several keys or on the data is checked by the code
    that reads them.

    Args:
        help: what the key means, in one line.
        default: value.
        choices: the names that it may have; none listed: any.
        limits: of the number, or of each number of a list.
        items: what a list must look like.
        applies_when: all of these must hold for the key to have an effect; where one does not, the key is refused on a
            command line. Configuration files may set it, for they serve several command lines.
        identity: whether the key belongs to a run's identity. False: it changes no result, only where and how fast.
            None: only if it differs from its default, because there are runs that are older than the key.
        is_path: it names files or folders, in which `~` and environment variables are expanded.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "limits": limits,
        "items": items,
        "applies_when": applies_when,
        "identity": identity,
        "is_path": is_path,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def path_option(help: str, *, identity: bool = True, applies_when: tuple[When, ...] = ()) -> Any:
    """A key that names a file or folder, null by default; arguments as for `option`."""
    return option(help, None, identity=identity, applies_when=applies_when, is_path=True)
