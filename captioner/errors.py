"""The one exception for what a user can mend."""

from __future__ import annotations

import click


class CaptionerError(click.ClickException):
    """A mistake of the user's or of their data: one line that names the file, the value and the remedy.

    Commands print it as ``Error: <message>`` without a traceback and exit with status 1.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class Interrupted(CaptionerError):
    """Work stopped by SIGINT or SIGTERM after it was saved; the same command goes on from there."""

    exit_code = 130
