"""Errors are data: their text is composed last, and no code reads it again."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from error_texts import option_checks, remedies_in_what, text_searches

import medaug
from medaug.cohort.findings import Finding
from medaug.errors import UserError


def test_the_text_is_composed_of_the_fields() -> None:
    error = UserError("is damaged", "copy it again", code="damaged", path=Path("/a/b.nii"), detail="CRC\nfails")
    assert str(error) == r"/a/b.nii: is damaged (CRC\nfails); copy it again"
    assert str(UserError("nothing to do")) == "nothing to do"
    assert str(UserError("what", path="/a/\n")) == r"/a/\n: what"
    inside = error.within("series 3")
    assert (inside.what, inside.remedy, inside.code) == ("series 3: is damaged", "copy it again", "damaged")
    assert (inside.path, inside.detail) == (error.path, error.detail)


def test_errors_survive_the_way_from_a_worker_process() -> None:
    error = UserError("what", "remedy", code="code", path=Path("p"), detail="detail")
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error) and str(copy) == str(error)


def test_a_finding_takes_the_fields_of_an_error() -> None:
    error = UserError("holds 1; 2; 3", "choose one; or two", path="/a/b", detail="x")
    finding = Finding.from_error("case", "code", error)
    assert (finding.what, finding.remedy, finding.path) == ("holds 1; 2; 3 (x)", "choose one; or two", "/a/b")
    assert str(finding) == "error: case: /a/b: holds 1; 2; 3 (x); choose one; or two"


def test_no_code_searches_the_text_of_our_errors() -> None:
    package = Path(medaug.__file__).parent
    found = {path.relative_to(package): list(text_searches(path.read_text())) for path in package.rglob("*.py")}
    assert len(found) > 100 and {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "planted",
    [
        'try: f()\nexcept UserError as error:\n    if "cannot be read" in str(error): g()',
        "try: f()\nexcept (OSError, UserError) as e:\n    what, _, remedy = str(e).rpartition('; ')",
        "def kind(error: UserError) -> str:\n    text = str(error)\n    return text.split(': ')[0]",
        "def kind(error: UserError) -> str:\n    return re.split('[(]', f'{error}')[0]",
        "def kind(error):\n    return re.search('has', error.what)",
        "kinds = [f for f in findings if f.what.startswith('has')]",
        "kinds = [f for f in findings if f.remedy == 'nothing']",
        "new = replace(finding, what=finding.what.replace(old, new))",
        "def head(finding: Finding) -> str:\n    return finding.what[:20]",
        "def head(error: UserError) -> str:\n    return error.args[0].lower().endswith('x')",
        "def is_damaged(error: UserError) -> bool:\n    return 'damaged' in printable(str(error))",
    ],
)
def test_a_planted_search_is_found(planted: str) -> None:
    assert list(text_searches(planted))


@pytest.mark.parametrize(
    "innocent",
    [
        "try: f()\nexcept UserError as error:\n    raise UserError(f'a: {error.what}', error.remedy)",
        "try: f()\nexcept ValueError as error:\n    reason = str(error).splitlines()[0]",  # a library's text
        "codes = {f.code for f in findings if f.code == 'gap'}",
        "print(str(finding), finding.what)",
    ],
)
def test_what_reads_fields_is_left_alone(innocent: str) -> None:
    assert not list(text_searches(innocent))


def test_no_remedy_is_written_into_what() -> None:
    package = Path(medaug.__file__).parent
    found = {path.relative_to(package): list(remedies_in_what(path.read_text())) for path in package.rglob("*.py")}
    assert len(found) > 100 and {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "raise UserError('is damaged; copy it again')",
        "raise UserError(f'{path}: is {kind}; ' + remedy)",
        "raise UserError(f'is damaged; {remedy}', path=path)",
        "def f():\n    quotes = '; put it in quotes' if several else ''\n    raise UserError(f'expected text{quotes}')",
        "findings.append(Finding(case, 'error', 'gap', 'has a gap; rescan', ''))",
        "raise PixelError(what='cannot be decoded; install pylibjpeg')",
    ],
)
def test_a_planted_remedy_in_what_is_found(planted: str) -> None:
    assert list(remedies_in_what(planted))


def test_lists_brackets_and_remedies_of_several_parts_are_left_alone() -> None:
    innocent = "raise UserError(f'differ ({\"; \".join(names)}) (3; in 2 voxels)', 'restore it; or remove it')"
    assert not list(remedies_in_what(innocent))


def test_no_value_is_checked_beside_its_declaration() -> None:
    """Exempt are an argument of the Python API, and keys that have no effect with several others or with a model."""
    package = Path(medaug.__file__).parent
    exempt = {"keys.py", "api.py", "training/checks.py", "networks/build.py"}
    paths = [path for path in package.rglob("*.py") if path.relative_to(package).as_posix() not in exempt]
    found = {path.relative_to(package): list(option_checks(path.read_text())) for path in paths}
    assert len(found) > 100 and {path: lines for path, lines in found.items() if lines} == {}
    assert list(option_checks("raise UserError(f'trainer.{key}={value}: must be at least {least}')"))
    assert list(option_checks("raise ValueError(f'network.stem={stem}: not one of {known}')"))
