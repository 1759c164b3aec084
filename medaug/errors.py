"""The one exception that a user is meant to read, and how text from files is shown."""


def printable(text: str, kept: str = "") -> str:
    """Text with every control character, line break and invisible character written as an escape.

    Names and values from files may hold what a terminal obeys, or a line break behind which a line is forged.

    Args:
        text: what is to be shown.
        kept: characters that are left as well.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


class UserError(Exception):
    """A mistake that the user can mend: one line with the file or key, the reason and the way out.

    Stages print it without a traceback and exit with status 2.
    """
