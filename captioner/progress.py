"""Progress reports: a bar with rate and remaining time on a terminal, otherwise a line at start and end."""

from __future__ import annotations

import sys
import time
from typing import Any

import click


class Progress:
    """Counts finished units of work; a context manager.

    Args:
        label: what is being done, for example ``extract squeezenet1_1``.
        total: total number of units.
        unit: what is counted, in the plural, for example ``images``.
        done: units that an earlier run finished; the bar counts them, the rate does not.
        shown: False to print nothing, because another process reports the progress.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, shown: bool = True) -> None:
        self.label, self.total, self.unit, self.done, self.shown = label, total, unit, done, shown
        self._start, self._new, self._note = 0.0, 0, ""
        self._bar: Any = None  # click's ProgressBar

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        if not self.shown:
            return self
        if sys.stderr.isatty():
            self._bar = click.progressbar(
                length=self.total,
                label=self.label,
                file=sys.stderr,
                show_pos=True,
                item_show_func=lambda _: self._state(),
            ).__enter__()
            self._bar.update(self.done)
        else:
            found = f", {self.done:,} done before" if self.done else ""
            click.echo(f"{self.label}: {self.total:,} {self.unit}{found}", err=True)
        return self

    def advance(self, units: int, note: str = "") -> None:
        """Count ``units`` more as finished; ``note``, for example a loss, is shown at the end of the bar."""
        self._new += units
        self._note = note
        if self._bar is not None:
            self._bar.update(units, current_item=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        if kind is None and self.shown:
            seconds = time.monotonic() - self._start
            click.echo(f"{self.label}: {self._new:,} {self.unit} in {seconds:.1f} s ({self._rate():,.0f}/s)", err=True)

    def _rate(self) -> float:
        return self._new / max(time.monotonic() - self._start, 1e-9)

    def _state(self) -> str:
        return f"{self._rate():,.0f} {self.unit}/s {self._note}".rstrip()
