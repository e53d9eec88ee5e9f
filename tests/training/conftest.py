"""What several tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.runs import Runs
from tests.training.small import make_data
from tests.training.watching import Watch


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two views an image; where the views do not matter, test files make their own with one."""
    return make_data(tmp_path_factory.mktemp("data"), views=2)


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Looks into every step of the runs of a test."""
    watch = Watch()
    yield watch
    watch.close()
