"""SIGINT and SIGTERM: finish the step, save, exit non-zero; a second signal ends at once."""

from __future__ import annotations

import os
import signal
import threading

import click

from captioner.errors import Interrupted


class StopSignal:
    """Context manager that turns the first SIGINT or SIGTERM into a flag to look at between steps.

    ``requested`` is True once a signal came. ``raise_if_requested`` is called where everything is saved. Outside the
    main thread (where Python cannot set handlers) the flag simply stays False. ``quiet``: another process says it.
    """

    def __init__(self, what: str, quiet: bool = False) -> None:
        self.what, self.quiet = what, quiet
        self.requested = False
        self._old: dict[int, object] = {}

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
        """Raise Interrupted when a signal came. Call it after the work so far is saved."""
        if self.requested:
            raise Interrupted(
                f"{self.what}: stopped by a signal; everything finished is saved, and the same command goes on from here"
            )

    def _handle(self, number: int, _: object) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        if not self.quiet:
            click.echo(
                f"{self.what}: {signal.Signals(number).name}; finishing this step and saving (again: end at once)",
                err=True,
            )
