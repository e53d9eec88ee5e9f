"""Errors that the user can fix."""

from __future__ import annotations

import click


class CaptionerError(click.ClickException):
    """An error in the user's input or data: one line that names the file, the value and the remedy.

    Commands print it as ``Error: <message>`` without a traceback and exit with status 1.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class Interrupted(CaptionerError):
    """Stopped by SIGINT or SIGTERM after saving; the same command resumes the work."""

    exit_code = 130
