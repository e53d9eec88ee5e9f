"""One model for all tests here; none of them changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.captioning import Captioner
from tests.captioning import small


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small.make_run(tmp_path_factory.mktemp("captioning") / "run")


@pytest.fixture(scope="session")
def captioner(run: dict[str, Path]):
    with Captioner.load(run["models"], "cpu") as loaded:
        yield loaded
