"""Signals: the first requests a clean stop, the second exits at once; progress prints little in a log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from captioner.errors import CaptionerError, Interrupted
from captioner.interrupts import StopSignal
from captioner.progress import Progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_for_a_stop(number) -> None:
    before = signal.getsignal(number)
    with StopSignal("train") as stop:
        stop.raise_if_requested()
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(Interrupted, match="the same command goes on"):
            stop.raise_if_requested()
    assert signal.getsignal(number) == before


def test_second_signal_ends_at_once() -> None:
    code = textwrap.dedent(
        """
        import os, signal, time
        from captioner.interrupts import StopSignal
        with StopSignal("train"):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        """
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 128 + signal.SIGTERM


def test_progress_in_a_log_is_two_lines(capsys) -> None:
    with Progress("extract", 100, "images", done=40) as progress:
        for _ in range(60):
            progress.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "extract: 100 images, 40 done before"
    assert lines[1].startswith("extract: 60 images in ")


def test_error_messages_are_one_line() -> None:
    assert CaptionerError("a\nb").message == "a b"
