"""Tables of named entries, and the entries that installed packages add."""

import sys
from collections.abc import Callable

import pytest

from medaug.errors import UserError
from medaug.tables import Table, installed

Install = Callable[..., None]


@pytest.fixture
def colours() -> Table[str]:
    return Table("colours", "colour", str, {"red": "#f00", "green": "#0f0"})


def test_own_entries_are_found_in_their_order(colours: Table[str]) -> None:
    assert colours["green"] == "#0f0" and list(colours) == ["red", "green"] and len(colours) == 2
    assert "red" in colours and "blue" not in colours and dict(colours.items()) == colours.own


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
    assert colours["red"] == "#f00" and list(colours) == ["red", "green"]


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


def test_a_table_of_classes_takes_derived_classes_only(install: Install) -> None:
    table: Table[type[int]] = Table("numbers", "number", int, {}, classes=True)
    install("more", "class Even(int): ...\nTEN = 10", numbers={"even": "Even", "ten": "TEN"})
    assert issubclass(table["even"], int)
    with pytest.raises(UserError, match="is of type int, but must be a class derived from int; "):
        table["ten"]
