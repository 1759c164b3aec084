"""Tables of named entries, such as the samplers, to which installed packages can add their own.

An entry is one object that holds everything its table needs: its options, its checks and its code. The package's own
entries are listed in `medaug.entries`. An installed package adds one by an entry point of group `medaug.<table>`
(docs/extending.md). Both are imported when they are looked up. Free of torch and numpy, as `medaug.options` is.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from medaug.entries import OWN
from medaug.errors import UserError

Entry = TypeVar("Entry")


class Table(Generic[Entry]):
    """Entries by name: the package's own first, in their order, then those of installed packages, sorted.

    `table[name]` looks one up; `name in table`, `len(table)` and iteration know all names without importing anything.

    Args:
        name: of the table, such as "samplers"; installed packages add to it by the group `medaug.samplers`.
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
        where = f"{point.name}: the {self.noun} that the package {_package(point)} adds ({point.value})"
        remedy = "repair or uninstall that package"
        try:
            entry = point.load()
        except Exception as error:  # the package's code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{where} cannot be imported ({reason})", remedy) from error
        if self.classes:
            right = isinstance(entry, type) and issubclass(entry, self.kind)
            wanted = f"a class derived from {self.kind.__name__}"
        else:
            right, wanted = isinstance(entry, self.kind), f"a {self.kind.__name__}"
        if not right:
            raise UserError(f"{where} is of type {type(entry).__name__}, but must be {wanted}", remedy)
        return cast(Entry, entry)


def entry_names(table: str) -> list[str]:
    """The names of a table's entries: the package's own in their order, then those of installed packages, sorted."""
    return [*OWN[table], *sorted(installed(table).keys() - OWN[table].keys())]


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
