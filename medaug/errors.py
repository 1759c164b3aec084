"""The exception for mistakes that a user can correct, and how text from files is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence


def printable(text: str, kept: str = "") -> str:
    """Return text with every control character, line break and invisible character written as an escape.

    Names and values from files may contain terminal control sequences, or line breaks that forge a further line.

    Args:
        text: text to show.
        kept: characters that are not escaped.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def listed(words: Sequence[str]) -> str:
    """One or more words as a list in a sentence: "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def sentence(what: str, path: str | os.PathLike[str] | None) -> str:
    """Return `what`, preceded by the path of the file if there is one."""
    return what if path is None else f"{printable(os.fspath(path))}: {what}"


class UserError(Exception):
    """A mistake that the user can correct. Stages print it as one line, without a traceback, and exit with status 2.

    The fields are the data; the text is composed from them last: "path: what (detail); remedy". Code that handles the
    error reads the fields and never searches the text.

    Attributes:
        what: what is wrong, without the path of the file; if `detail` is given, also without quotations from the file.
        remedy: what the user can do about it; "" if `what` already says it.
        code: the kind of error in hyphenated words, such as "truncated", if callers need to distinguish kinds.
        path: the file or folder that the error is about.
        detail: what the file contains or what a library reported, shown in brackets. It may name a patient or a path,
            so handlers whose messages must not contain those leave out `detail` and `path`.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "",
        *,
        code: str = "",
        path: str | os.PathLike[str] | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy, self.code, self.path, self.detail = what, remedy, code, path, detail

    def __str__(self) -> str:
        """Return the error as one line."""
        return "; ".join(filter(None, [sentence(self.full, self.path), self.remedy]))

    @property
    def full(self) -> str:
        """What is wrong, with the detail and without the path."""
        return f"{self.what} ({printable(self.detail)})" if self.detail else self.what

    def within(self, context: str) -> UserError:
        """Return the same error with a context, such as "series 3", in front of `what`."""
        return UserError(f"{context}: {self.what}", self.remedy, code=self.code, path=self.path, detail=self.detail)
