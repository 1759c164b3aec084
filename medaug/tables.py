"""Tables of named entries, such as the samplers, to which installed packages can add their own.

An entry is one object that holds everything its table needs: its options, its checks and its code. The package's own
entries are listed in `medaug.entries`. An installed package adds one by an entry point of group `medaug.<table>`
(docs/extending.md). Both are imported when they are looked up. Free of torch and numpy, as `medaug.options` is.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from medaug.entries import OWN
from medaug.errors import UserError

Entry = TypeVar("Entry")
Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest value of options by name."""


class Table(Generic[Entry]):
    """Entries by name: the package's own first, in their order, then those of installed packages, sorted.

    `table[name]` looks one up; `name in table`, `len(table)` and iteration know all names without importing anything.

    Args:
        name: name of the table, such as "samplers"; installed packages add to it by the group `medaug.samplers`.
        noun: what one entry is called in messages, such as "sampler".
        kind: class or runtime-checkable protocol of the entries; an installed entry of another kind is refused.
        key: the option that chooses an entry, such as "sampler.name", for messages.
        classes: whether entries are subclasses of `kind`, and not instances of it.

    Attributes:
        own: functions that import the package's own entries, which an installed package cannot replace.
    """

    def __init__(
        self,
        name: str,
        noun: str,
        kind: type[Any],
        *,
        key: str = "",
        classes: bool = False,
    ) -> None:
        self.name, self.noun, self.kind, self.key, self.classes = name, noun, kind, key, classes
        self.own: dict[str, Callable[[], Entry]] = {
            entry: EntryPoint(entry, where, _group(name)).load for entry, where in OWN[name].items()
        }
        self._loaded: dict[EntryPoint, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UserError: there is none (the line names the nearest name and all of them), or an installed package's entry
                cannot be imported or is of the wrong kind.
        """
        if name in self.own:
            return self.own[name]()
        if (point := installed(self.name).get(name)) is None:
            said = f"{self.key}={name}" if self.key else name
            raise no_such(f"{said}: no such {self.noun}", name, self, f"(all: {', '.join(self)})")
        if point not in self._loaded:
            self._loaded[point] = self._load(point)
        return self._loaded[point]

    def __contains__(self, name: object) -> bool:
        """Whether there is an entry of that name."""
        return name in self.own or name in installed(self.name)

    def __iter__(self) -> Iterator[str]:
        """All names."""
        yield from self.own
        yield from sorted(installed(self.name).keys() - self.own.keys())

    def __len__(self) -> int:
        """Number of entries."""
        return sum(1 for _ in self)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """All names with their entries; imports those of installed packages."""
        return ((name, self[name]) for name in self)

    def _load(self, point: EntryPoint) -> Entry:
        entry = _imported(point, self.noun)
        if self.classes:
            right = isinstance(entry, type) and issubclass(entry, self.kind)
            wanted = f"a class derived from {self.kind.__name__}"
        else:
            right, wanted = isinstance(entry, self.kind), f"a {self.kind.__name__}"
        if not right:
            said = f"{_origin(point, self.noun)} is of type {type(entry).__name__}, but must be {wanted}"
            raise UserError(said, _REPAIR)
        return cast(Entry, entry)


_REPAIR = "repair or uninstall that package"


def _origin(point: EntryPoint, noun: str) -> str:
    return f"{point.name}: the {noun} that the package {_package(point)} adds ({point.value})"


def _imported(point: EntryPoint, noun: str) -> Any:
    try:
        return point.load()
    except Exception as error:  # the package's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{_origin(point, noun)} cannot be imported ({reason})", _REPAIR) from error


def entry_names(table: str) -> list[str]:
    """The names of a table's entries: the package's own in their order, then those of installed packages, sorted."""
    return [*OWN[table], *sorted(installed(table).keys() - OWN[table].keys())]


def entry_defaults(table: str, name: str, known: Collection[str]) -> dict[str, Any]:
    """Values that an entry of an installed package gives to other keys of its group when `group=name` chooses it.

    This is its attribute `defaults`, if it has one. For the package's own entries, a file below conf/ says it.

    Args:
        table: such as "samplers".
        name: name of an entry.
        known: keys of the group.

    Raises:
        UserError: the entry cannot be imported, or its defaults name a key that the group does not have.
    """
    if name in OWN[table]:
        return {}
    point = installed(table)[name]
    defaults: dict[str, Any] = dict(getattr(_imported(point, "entry"), "defaults", {}))
    for key in defaults.keys() - set(known):
        what = f"{_origin(point, 'entry')} has a default for {key}, no key of its group"
        raise no_such(what, key, known, f"({_REPAIR})")
    return defaults


def installed(table: str) -> Mapping[str, EntryPoint]:
    """The entry points that installed packages add to a table, by name, not imported yet.

    Args:
        table: its name, such as "samplers".

    Raises:
        UserError: two packages add different entries of the same name.
    """
    return _installed(table, tuple(sys.path))


@cache
def _installed(table: str, search_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """See `installed`; read again whenever the module search path has changed."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=_group(table)):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UserError(
                f"{point.name}: the packages {_package(other)} and {_package(point)} both add this name to medaug's "
                f"{table.replace('_', ' ')}",
                "uninstall one of them",
            )
    return found


def _group(table: str) -> str:
    return f"medaug.{table}"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`did you mean X?` with the one or two names that are spelt most like `word`; empty if none is near."""
    close = difflib.get_close_matches(word, sorted(names), n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def no_such(what: str, word: str, names: Iterable[str], listed: str) -> UserError:
    """The error for a name that does not exist.

    Args:
        what: what is wrong, such as "sampler.name=dim: no such sampler".
        word: the name.
        names: those that exist; the nearest ones are the remedy.
        listed: all names, or where they are listed, in brackets.
    """
    near = did_you_mean(word, names)
    return UserError(what, f"{near} {listed}") if near else UserError(f"{what} {listed}")


def parse_parameters(words: Iterable[str]) -> dict[str, Any]:
    """Options of an installed entry, each given as "name:value", by name.

    A value that reads as a number is one (an integer where it has neither point nor exponent), `true` and `false` are
    booleans, all else is text.

    Raises:
        ValueError: a word that is not of this form, or a name that is given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, colon, text = word.partition(":")
        if not (name and colon and text) or name in found:
            raise ValueError(f"parameters has {word!r}; write each option once, as in [strength:0.5]")
        found[name] = _parsed(text)
    return found


def check_parameters(
    reader: str,
    given: Mapping[str, Any],
    ranges: Ranges,
    other_readers: Callable[[str], Sequence[str]] = lambda option: (),
) -> None:
    """Refuse options that an entry does not read, or that are outside their range.

    Args:
        reader: the entry, such as "the sampler ddim".
        given: options by name.
        ranges: least and greatest value of the options that the entry reads.
        other_readers: function of an option that returns the names of entries that read it.

    Raises:
        ValueError: names the option and the remedy.
    """
    for option, value in given.items():
        if option not in ranges:
            others = other_readers(option)
            hint = f"only {', '.join(others)} does; " if others else did_you_mean(option, ranges) + " "
            raise ValueError(f"{option} is {_shown(value)}, but {reader} does not read it; {hint.lstrip()}leave it out")
        if isinstance(value, bool | str):
            raise ValueError(f"{option} must be a number")
        least, most = ranges[option]
        if not least <= value <= most:
            raise ValueError(f"{option} is {value:g}, but must lie in [{least:g}, {most:g}]")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def read_parameters(key: str, words: Iterable[str], reader: str, ranges: Ranges) -> dict[str, float]:
    """Options of an entry, from the list that `key` holds.

    Args:
        key: such as "network.parameters".
        words: each "name:value".
        reader: the entry, such as "the network spade".
        ranges: as in `check_parameters`.

    Raises:
        UserError: names the key, what is wrong, and the remedy.
    """
    try:
        given = parse_parameters(words)
        check_parameters(reader, given, ranges)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error
    return given


def _parsed(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "of unknown name"
