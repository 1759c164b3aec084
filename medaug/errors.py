"""The one exception that a user is meant to read, and how text from files is shown."""

from __future__ import annotations

import os


def printable(text: str, kept: str = "") -> str:
    """Return text with every control character, line break and invisible character written as an escape.

    Names and values from files may contain terminal control sequences, or line breaks that forge a further line.

    Args:
        text: what is to be shown.
        kept: characters that are left as they are.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def sentence(what: str, path: str | os.PathLike[str] | None) -> str:
    """Return what is wrong with the path of the file in front, if there is one."""
    return what if path is None else f"{printable(os.fspath(path))}: {what}"


class UserError(Exception):
    """A mistake that the user can correct. Stages print it as one line, without a traceback, and exit with status 2.

    The fields are the data; the text is composed from them last: "path: what (detail); remedy". Code that handles the
    error reads the fields and never searches the text.

    Attributes:
        what: what is wrong, without the path of the file and without anything quoted from it where `detail` is given.
        remedy: what the user can do about it; "" where `what` already says it.
        code: the kind of fault, in words with hyphens ("truncated"), where callers need to tell kinds apart.
        path: the file or folder at fault.
        detail: what the file contains or what a library says of it, shown in brackets. It may name a patient or a
            path, so handlers that must keep those out of their messages leave it out, and `path` as well.
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
        """Return the same error with the place where it occurred in front of `what`, such as "series 3"."""
        return UserError(f"{context}: {self.what}", self.remedy, code=self.code, path=self.path, detail=self.detail)
