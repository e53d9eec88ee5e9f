"""What several tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.runs import Runs
from tests.training.small import make_data


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two views a picture; where the views do not matter, test files make their own with one."""
    return make_data(tmp_path_factory.mktemp("data"), views=2)
