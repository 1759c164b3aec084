"""Tables of named entries, and the entries that installed packages add."""

import pkgutil
import string
import sys
from collections.abc import Callable
from importlib import import_module

import pytest

import medaug
from medaug.entries import OWN
from medaug.errors import UserError
from medaug.keys import keys, names
from medaug.options.declaration import Choices
from medaug.tables import Table, installed

Install = Callable[..., None]


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Table[str]:
    """A table whose own entries are two texts of the standard library."""
    monkeypatch.setitem(OWN, "colours", {"red": "string:digits", "green": "string:hexdigits"})
    return Table("colours", "colour", str)


def test_own_entries_are_found_in_their_order(colours: Table[str]) -> None:
    assert colours["green"] == string.hexdigits and list(colours) == ["red", "green"] and len(colours) == 2
    assert "red" in colours and "blue" not in colours and list(colours.own) == ["red", "green"]
    assert dict(colours.items()) == {"red": string.digits, "green": string.hexdigits}


def test_an_unknown_name_gives_the_nearest_and_all(colours: Table[str]) -> None:
    with pytest.raises(UserError, match=r"^greeen: no such colour; did you mean green\? \(all: red, green\)$"):
        colours["greeen"]
    with pytest.raises(UserError, match=r"^zzzz: no such colour \(all: red, green\)$"):
        colours["zzzz"]


def test_an_installed_package_adds_an_entry(colours: Table[str], install: Install) -> None:
    install("paint", "BLUE = '#00f'", colours={"blue": "BLUE"})
    assert list(colours) == ["red", "green", "blue"] and colours["blue"] == "#00f"
    with pytest.raises(UserError, match=r"did you mean blue\? \(all: red, green, blue\)"):
        colours["bleu"]


def test_an_entry_is_imported_only_when_it_is_looked_up(colours: Table[str], install: Install) -> None:
    install("lazy_paint", "BLUE = '#00f'", colours={"blue": "BLUE"})
    assert "blue" in colours and list(installed("colours")) == ["blue"] and colours["red"]
    assert "lazy_paint" not in sys.modules
    assert colours["blue"] is colours["blue"] and "lazy_paint" in sys.modules


def test_an_installed_entry_cannot_replace_one_of_the_packages_own(colours: Table[str], install: Install) -> None:
    install("paint", "RED = '#a00'", colours={"red": "RED"})
    assert colours["red"] == string.digits and list(colours) == ["red", "green"]


def test_two_packages_with_one_name_are_refused(colours: Table[str], install: Install) -> None:
    install("paint", "BLUE = '#00f'", colours={"blue": "BLUE"})
    install("varnish", "BLUE = '#00a'", colours={"blue": "BLUE"})
    with pytest.raises(UserError, match="^blue: the packages (paint and varnish|varnish and paint) both add"):
        colours["blue"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no pigment')", r"cannot be imported \(RuntimeError: no pigment\)"),
        ("", r"cannot be imported \(AttributeError: "),
        ("BLUE = 255", r"is of type int, but must be a str"),
    ],
)
def test_a_broken_installed_entry_is_one_clear_line(
    code: str, reason: str, colours: Table[str], install: Install
) -> None:
    install("broken_paint", code, colours={"blue": "BLUE"})
    with pytest.raises(UserError, match=r"^blue: the colour that the package broken_paint adds \(.*\) " + reason) as e:
        colours["blue"]
    assert "\n" not in str(e.value) and str(e.value).endswith("; repair or uninstall that package")


def test_removing_the_package_removes_its_entries(
    colours: Table[str], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(sys.path)
    install("paint", "BLUE = '#00f'", colours={"blue": "BLUE"})
    assert "blue" in colours
    monkeypatch.setattr(sys, "path", before)
    assert "blue" not in colours


def test_a_table_of_classes_takes_derived_classes_only(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "numbers", {})
    table: Table[type[int]] = Table("numbers", "number", int, classes=True)
    install("more", "class Even(int): ...\nTEN = 10", numbers={"even": "Even", "ten": "TEN"})
    assert issubclass(table["even"], int)
    with pytest.raises(UserError, match="is of type int, but must be a class derived from int; "):
        table["ten"]


def test_every_own_entry_has_the_type_of_its_table() -> None:
    modules = (
        import_module(name)
        for _, name, _ in pkgutil.walk_packages(medaug.__path__, "medaug.")
        if "__main__" not in name
    )
    tables = {table.name: table for module in modules for table in vars(module).values() if isinstance(table, Table)}
    assert tables.keys() == OWN.keys()
    assert {key.choices.table for key in keys().values()} - {""} <= OWN.keys()
    for table in tables.values():
        choices = keys()[table.key].choices if table.key else Choices(table=table.name)
        assert choices.table == table.name and set(names(choices)) >= set(table) - set(choices.without)
        for name, entry in table.items():
            right = issubclass(entry, table.kind) if table.classes else isinstance(entry, table.kind)
            assert right, f"{table.name}: {name}"
            assert getattr(entry, "name", name) == name
