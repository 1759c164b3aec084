"""How an option is declared: its help line, its default, the values it may have, and when it has an effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """Limits of a number, or of each number of a list. NaN and infinity are never valid."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        """Whether the number is within all limits."""
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """In words, such as "at least 1", "between 0 and 1" or "above 0 and below 1"; empty without limits."""
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


@dataclass(frozen=True)
class Items:
    """Requirements of a list as a whole.

    Attributes:
        fewest: minimum number of values.
        count: exact number of values; None: any number from `fewest` on.
        ascending: whether each value must be greater than the one before.
        distinct: whether no value may occur twice.
    """

    fewest: int = 0
    count: int | None = None
    ascending: bool = False
    distinct: bool = False

    def problem(self, values: list[Any]) -> str | None:
        """What is wrong with a list; None if it is valid."""
        right = len(values) >= self.fewest if self.count is None else len(values) == self.count
        right = right and not (self.ascending and any(a >= b for a, b in zip(values, values[1:], strict=False)))
        right = right and not (self.distinct and len(set(values)) < len(values))
        return None if right else f"must have {self}"

    def __str__(self) -> str:
        """In words, such as "2 ascending values" or "at least 1 value, each given once"; empty if any list is valid."""
        number = self.fewest if self.count is None else self.count
        if not number:
            return "no value twice" if self.distinct else ""
        kind = f"{'ascending ' if self.ascending else ''}value{'s' if number > 1 else ''}"
        counted = f"{'' if self.count else 'at least '}{number} {kind}"
        return f"{counted}, each given once" if self.distinct else counted


@dataclass(frozen=True)
class Choices:
    """The valid names of an option: those listed, and those of a table (`medaug.tables`) except `without`."""

    names: tuple[str | int, ...] = ()
    table: str = ""
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class When:
    """A condition on another key, without which an option has no effect.

    Attributes:
        key: path of the other key; without a dot, a key of the same group. If there is no such key, the condition is
            ignored.
        values: the other key must have one of these values; empty: it must be set, that is, not null, false or an
            empty list.
        not_: reverses the condition.
    """

    key: str
    values: tuple[Any, ...] = ()
    not_: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the option has an effect while the other key has this value."""
        return (value in self.values if self.values else value not in (None, False, [])) != self.not_

    def __str__(self) -> str:
        """In words, such as "codec=kl" or "data.labelled"; the caller adds the word for `not_`."""
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
    """Numbers from `least` on, `least` included."""
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
    """Declare a dataclass field that is a key of the configuration.

    `medaug.keys` checks everything that is declared here, and `--help` and the configuration reference show it, so the
    help line does not repeat it. What depends on several keys or on the data is checked by the code that reads them.

    Args:
        help: meaning of the key, in one line.
        default: default value.
        choices: the valid names; without any, all names are valid.
        limits: limits of the number, or of each number of a list.
        items: requirements of a list as a whole.
        applies_when: conditions that must all hold for the key to have an effect. If one does not, the key is refused
            on the command line. Configuration files may still set it, because they are used with several command lines.
        identity: whether the key belongs to the identity of a run. False: it changes no result, only where and how fast
            results are computed. None: only if it differs from its default, because some runs are older than the key.
        is_path: whether the key names files or folders, in which `~` and environment variables are expanded.
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
    """Declare a key that names a file or folder, null by default; arguments as for `option`."""
    return option(help, None, identity=identity, applies_when=applies_when, is_path=True)


def added_parameters(kind: str, example: str) -> Any:
    """Declare the key for options of a table's entries that other packages add, such as `kind` "sampler"."""
    return option(f"options of a {kind} that another package adds, as in [{example}]", [], identity=None)


def set_option() -> Any:
    """Declare the key that names one of several sets of pairs under the same training."""
    return option(
        "name of the set of pairs, to keep several of one training: runs/EXP/synthetic-NAME, audit-NAME and so on",
        None,
        identity=False,
    )
