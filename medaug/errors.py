"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend: one line with the file or key, the reason and the way out.

    Stages print it without a traceback and exit with status 2.
    """
