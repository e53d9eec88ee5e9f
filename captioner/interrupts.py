"""SIGINT and SIGTERM: finish the current step, save and exit non-zero; a second signal exits at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import click

from captioner.errors import Interrupted


class StopSignal:
    """Context manager that turns the first SIGINT or SIGTERM into a flag, which is checked between steps.

    Outside the main thread, where Python cannot set signal handlers, the flag stays False.

    Args:
        what: name of the work in messages.
        quiet: do not print a message, because another process does.

    Attributes:
        requested: True once a signal arrived.
    """

    def __init__(self, what: str, quiet: bool = False) -> None:
        self.what, self.quiet = what, quiet
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal arrived. Call it only after the work so far is saved."""
        if self.requested:
            raise Interrupted(
                f"{self.what}: stopped by a signal; everything finished is saved, and the same command goes on from "
                "here"
            )

    def _handle(self, number: int, _: object) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        if not self.quiet:
            click.echo(
                f"{self.what}: {signal.Signals(number).name}; finishing this step and saving (send it again to exit "
                "at once)",
                err=True,
            )
