"""Reads files of the user or of an earlier stage, or refuses them in one line that names the file.

Only regular files are opened (a pipe would block for ever), and only up to a plausible size.
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
_MOST_NODES = 100_000  # in a YAML document after its aliases are expanded
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
_CHECK = "check the path and its permissions"


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], remedy: str = _CHECK) -> Iterator[io.BufferedReader]:
    """Open a regular file to read its bytes.

    Args:
        path: the file.
        remedy: the advice if it cannot be read.

    Raises:
        UserError: the file is missing, may not be read, or is a folder, a pipe or a device; or reading it fails later.
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
    """Read a file of at most `largest` bytes.

    Raises:
        UserError: as for `opened`, or the file is larger.
    """
    with opened(path, remedy) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        limit = f"{largest >> 20} MiB, which is too large for such a file"
        raise UserError(f"is larger than {limit}", "check that it is the right file", path=path)
    return content


def read_text(path: str | os.PathLike[str], largest: int = LARGEST_TEXT, remedy: str = _CHECK) -> str:
    """Read a UTF-8 file, without its byte order mark.

    Raises:
        UserError: as for `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, largest, remedy).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", "save it as UTF-8, or restore it", path=path) from None


def read_json_value(path: str | os.PathLike[str], remedy: str = "correct or restore it") -> Any:
    """Read a JSON file.

    Raises:
        UserError: as for `read_text`; or the file is not JSON, or an object has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json silently keeps the last of two equal keys, so a label value that is given twice would be lost.
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


def read_json(path: str | os.PathLike[str], remedy: str = "correct or restore it") -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        UserError: as for `read_json_value`, or the content is not an object.
    """
    data = read_json_value(path, remedy)
    if not isinstance(data, dict):
        raise UserError("not a JSON object", remedy, path=path)
    return data


def read_yaml(path: str | os.PathLike[str], remedy: str = "correct or restore it") -> dict[Any, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        UserError: as for `read_text`; or the file is not YAML, not a mapping, has a key twice, or has aliases that
            multiply its content.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        node = yaml.compose(text, _Loader)
        if node is not None and _count(node, {}) > _MOST_NODES:
            raise yaml.YAMLError("its aliases repeat too much")
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, *_MALFORMED, RecursionError) as error:  # a wrong tag can raise any of them
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"not YAML ({reason})", remedy, path=path) from error
    if not isinstance(content, dict):
        raise UserError("not a mapping", remedy, path=path)
    return content


@contextlib.contextmanager
def parsing(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Turn an exception of the block, which interprets a file's content, into one line that the file is damaged.

    Raises:
        UserError: the code inside met a missing key, a wrong type or a wrong value.
    """
    try:
        yield
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"is damaged ({reason[:120]})", remedy, path=path) from error


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; otherwise one of two equal label values would silently be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dictionary."""
        content = super().construct_mapping(node, deep)
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.YAMLError(f"key {key} occurs twice")
        return content


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the nodes of a document after its aliases are expanded; a node that contains itself is too many."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1  # while it is being counted, so that an alias of itself ends the recursion
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = (one for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        known[id(node)] = 1 + sum(_count(one, known) for one in flat)
    return known[id(node)]


def _unreadable(path: str | os.PathLike[str], error: OSError | ValueError, remedy: str) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot be read ({reason})", remedy, path=path)
