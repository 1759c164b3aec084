"""Files that a user brings or an earlier stage left: read whole, or refused in one line that names the file.

Only regular files are opened (a pipe would wait for ever), and no more is read than such a file may sensibly hold.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from medaug.errors import UserError

LARGEST_TEXT = 64 << 20
"""Bytes: a manifest of 200,000 cases. Parsed, such a file takes up to 25 times as much memory."""
LARGEST_YAML = 1 << 20
"""Bytes: parsed in Python, a YAML file takes several hundred times as much memory."""
_MOST_NODES = 100_000  # of a YAML document, each counted as often as it is repeated by an alias
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
_CHECK = "check the path and its permissions"


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], remedy: str = _CHECK) -> Iterator[io.BufferedReader]:
    """Open a regular file to read its bytes.

    Args:
        path: the file.
        remedy: what the user is advised to do where it cannot be read.

    Raises:
        UserError: the file is missing or may not be read, or it is a folder, a pipe or a device; also where reading
            fails later on.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to never returns.
        stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise UserError("no such file", remedy, path=path) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise _unreadable(path, error, remedy) from error
    with stream as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError("cannot be read (it is a pipe or device, not a file)", remedy, path=path)
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error, remedy) from error


def read_bytes(path: str | os.PathLike[str], largest: int = LARGEST_TEXT, remedy: str = _CHECK) -> bytes:
    """The content of a file of at most `largest` bytes.

    Raises:
        UserError: as `opened`, or the file is larger.
    """
    with opened(path, remedy) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        limit = f"{largest >> 20} MiB, more than such a file can hold"
        raise UserError(f"is larger than {limit}", "check that it is the right file", path=path)
    return content


def read_text(path: str | os.PathLike[str], largest: int = LARGEST_TEXT, remedy: str = _CHECK) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, largest, remedy).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", "save it as UTF-8, or restore it", path=path) from None


def read_json_value(path: str | os.PathLike[str], remedy: str = "mend or restore it") -> Any:
    """The content of a JSON file.

    Raises:
        UserError: as `read_text`, not JSON, or an object has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json keeps the last of two equal keys: a label value given twice would vanish without a word.
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise UserError(f'key "{key}" occurs twice', "remove one", path=path)
        return dict(pairs)

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"not a JSON file ({reason})", remedy, path=path) from error


def read_json(path: str | os.PathLike[str], remedy: str = "mend or restore it") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: as `read_json_value`, or it is not an object.
    """
    data = read_json_value(path, remedy)
    if not isinstance(data, dict):
        raise UserError("not a JSON object", remedy, path=path)
    return data


def read_yaml(path: str | os.PathLike[str], remedy: str = "mend or restore it") -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: as `read_text`, not YAML, not a mapping, a key given twice, or aliases that multiply its content.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        node = yaml.compose(text, _Loader)
        if node is not None and _count(node, {}) > _MOST_NODES:
            raise yaml.YAMLError("its aliases repeat too much")
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, *_MALFORMED, RecursionError) as error:  # a tag of another type than its value raises any
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"not YAML ({reason})", remedy, path=path) from error
    if not isinstance(content, dict):
        raise UserError("not a mapping", remedy, path=path)
    return content


@contextlib.contextmanager
def parsing(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Say in one line that a file is damaged where its content turns out to have another form than it should.

    Raises:
        UserError: the code inside stumbled over a missing key, a wrong type or a wrong value.
    """
    try:
        yield
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"is damaged ({reason[:120]})", remedy, path=path) from error


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice: of two equal label values one would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dictionary."""
        content = super().construct_mapping(node, deep)
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.YAMLError(f"key {key} occurs twice")
        return content


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a document once its aliases are written out; an alias inside of what it stands for is an error."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1  # as long as it is being counted: an alias of itself never ends
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = (one for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        known[id(node)] = 1 + sum(_count(one, known) for one in flat)
    return known[id(node)]


def _unreadable(path: str | os.PathLike[str], error: OSError | ValueError, remedy: str) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot be read ({reason})", remedy, path=path)
