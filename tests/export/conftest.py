"""One small model in fp32, and its export; none of the tests changes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.cli import main
from tests.captioning import small


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small.make_run(tmp_path_factory.mktemp("export") / "run", precision="fp32")


@pytest.fixture(scope="session")
def exported(run: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "onnx"
    done = CliRunner().invoke(main, ["export", str(out), "--onnx", "--model", str(run["models"])])
    assert done.exit_code == 0 and done.stderr == "", done.output
    return out
