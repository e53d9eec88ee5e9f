"""One small finished run for a file's tests, and a machine without Java."""

from __future__ import annotations

import pytest

from tests.evaluation import small


@pytest.fixture
def no_java(monkeypatch):
    """Java takes seconds to start; what a parameter does is seen without it."""
    monkeypatch.setattr("captioner.metrics.scores.find_java", lambda: None)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return small.make_run(tmp_path_factory.mktemp("run"))
